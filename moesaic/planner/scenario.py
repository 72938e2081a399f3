"""`Scenario`: a plan under assumptions, with the memory and work of each way to run it."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from moesaic.planner.assumptions import Assumptions
from moesaic.planner.devices import Device, devices_needed
from moesaic.planner.flops import Flops, mean_context, train_flops
from moesaic.planner.memory import ServeMemory, TrainMemory, serve_memory, train_memory
from moesaic.planner.params import Plan


class Fit(NamedTuple):
    """Devices needed to hold a training run together."""

    devices: int
    with_recompute: int
    """The same with only the layers' inputs kept."""

    @property
    def fits(self) -> bool:
        """Whether one device will do, if need be with recomputation."""
        return self.with_recompute == 1


@dataclass(frozen=True, slots=True)
class Training:
    """One way to train: the whole model, or the slice."""

    key: Literal["whole", "slice"]
    plan: Plan
    memory: TrainMemory
    recomputed: TrainMemory
    """The same with only the layers' inputs kept."""
    flops: Flops
    """Per token."""

    @classmethod
    def of(cls, plan: Plan, assumptions: Assumptions, sequence: int) -> "Training":
        """Work out memory and work of one plan."""

        def memory(recompute: bool) -> TrainMemory:
            shape = assumptions.batch, sequence, recompute, assumptions.passes
            return train_memory(plan, assumptions.formats(), *shape, assumptions.offload)

        key = "whole" if plan.train_experts is None else "slice"
        work = train_flops(plan, mean_context(sequence))
        return cls(key, plan, memory(assumptions.recompute), memory(True), work)

    @property
    def heading(self) -> str:
        """What its column is called."""
        return "whole model" if self.key == "whole" else "slice"

    def fit(self, device: Device) -> Fit:
        """How many devices hold it."""
        return Fit(
            devices_needed(self.memory.total, device),
            devices_needed(self.recomputed.total, device),
        )

    def executed(self, recompute: bool) -> float:
        """Operations per token that run; recomputing takes about another forward pass."""
        return self.flops.total + (self.flops.forward if recompute else 0)


@dataclass(frozen=True, slots=True)
class Scenario:
    """The numbers that the tables of a sheet show."""

    plan: Plan
    assumptions: Assumptions
    sequence: int
    """Tokens in a training sequence."""
    context: int
    """Tokens in the cache of each sequence served."""
    trainings: tuple[Training, ...]
    """The whole model, then the slice where there is one."""
    serving: dict[str, ServeMemory]
    """By dtype of the weights."""

    @classmethod
    def of(cls, plan: Plan, assumptions: Assumptions) -> "Scenario":
        """Work out memory and work.

        Raises:
            ConfigError: if a sequence is longer than the model can take.
        """
        sequence, context = assumptions.lengths(plan.config)
        plans = [replace(plan, train_experts=None, frozen_experts=0)]
        plan = replace(
            plan, hold_linears=assumptions.hold_linears, park_embedding=assumptions.park_embedding
        )
        if plan.train_experts is not None:
            plans.append(plan)
        cached = context * assumptions.sequences
        return cls(
            plan,
            assumptions,
            sequence,
            context,
            tuple(Training.of(variant, assumptions, sequence) for variant in plans),
            {
                "bfloat16": serve_memory(plan, "bfloat16", cached),
                "float8": serve_memory(plan, "float8", cached),
            },
        )

    def recompute_on(self, training: Training, device: Device) -> bool:
        """Whether that training recomputes on that device: when asked to, or to fit."""
        return self.assumptions.recompute or training.fit(device).devices > 1

    @property
    def chosen(self) -> Training:
        """The training that the plan is about: the slice where there is one."""
        return self.trainings[-1]
