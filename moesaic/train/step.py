"""One optimiser step: micro-batches, clipping, AdamW, bias step.

Letters: E experts, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from moesaic.balance.bias import move_biases_, sum_over_ranks
from moesaic.balance.stats import counted_load, dropped_share
from moesaic.balance.terms import balance_terms
from moesaic.config.train import TrainConfig
from moesaic.data.batch import Batch
from moesaic.model.dropping import Dropping
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer
from moesaic.train.objective import Objective, counted_tokens
from moesaic.train.optim import clip_, gradient_norm, set_learning_rate


@dataclass(frozen=True, slots=True)
class Rates:
    """What the schedules say for one step."""

    learning_rate: float
    mtp_weight: float
    bias_speed: float


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step found."""

    terms: dict[str, float]
    """Each term of the objective, without its weight."""
    loss: float
    """The objective: all terms with their weights."""
    grad_norm: float
    """Length of the gradient before clipping."""
    loads: dict[int, Tensor]
    """Tokens per expert of each layer with experts, over the whole step."""
    dropped: float
    """Share of token-expert pairs that capacity dropped."""

    @property
    def problem(self) -> str | None:
        """The first value that is not finite, as ``next_token=nan``; None if all are."""
        values = {**self.terms, "loss": self.loss, "grad_norm": self.grad_norm}
        return next((f"{name}={v}" for name, v in values.items() if not isfinite(v)), None)


@dataclass(slots=True)
class _Sums:
    """What accumulates over the micro-batches."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    loads: dict[int, Tensor] = field(default_factory=dict)
    dropped: list[float] = field(default_factory=list)

    def add_routing(self, trace: RoutingTrace, counted_T: Tensor | None) -> None:
        """Add a micro-batch's loads and dropped pairs."""
        for layer, routing in trace.layers.items():
            load_E = counted_load(routing, counted_T)
            self.loads[layer] = self.loads[layer] + load_E if layer in self.loads else load_E
            if routing.kept_TK is not None:
                self.dropped.append(dropped_share(routing.kept_TK))


def take_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    rates: Rates,
    config: TrainConfig,
    generator: torch.Generator,
) -> StepResult:
    """Move weights and biases by the gradient over all ``batches`` together.

    If a loss or the gradient is not finite nothing moves: weights, optimiser states and biases are
    as before.

    Args:
        model: what is trained.
        optimizer: of its parameters.
        batches: micro-batches, on any device.
        rates: of this step.
        config: of the run.
        generator: draws the sequences exempt from dropping.
    """
    optimizer.zero_grad(set_to_none=True)
    terms = balance_terms(config.balance, model.config)
    objective = Objective.of(batches, rates.mtp_weight, terms)
    sums = _Sums()
    with _gradients_in_place(model):
        for batch in batches:
            _backward(model, batch, objective, config, generator, sums)
    result = _result(sums, gradient_norm(model))
    if result.problem is None:
        clip_(model, optimizer, result.grad_norm, config.optimizer.clip_norm)
        set_learning_rate(optimizer, rates.learning_rate)
        optimizer.step()
        move_biases_(model.moe_layers(), result.loads, rates.bias_speed)
    optimizer.zero_grad(set_to_none=True)
    return result


@contextmanager
def _gradients_in_place(model: Transformer) -> Iterator[None]:
    """Let experts add to the gradients of earlier micro-batches, without a second one beside them.

    Other weights' gradients exist twice, one weight at a time, while autograd adds them.
    """
    layers = model.moe_layers().values()
    for moe in layers:
        moe.experts.accumulate = True
    try:
        yield
    finally:
        for moe in layers:
            moe.experts.accumulate = False


def _backward(
    model: Transformer,
    batch: Batch,
    objective: Objective,
    config: TrainConfig,
    generator: torch.Generator,
    sums: _Sums,
) -> None:
    """Add one micro-batch's gradients to the weights, and what it found to ``sums``."""
    device = next(model.parameters()).device
    counted_T = counted_tokens(batch)
    counted_T = None if counted_T is None else counted_T.to(device)
    rows, is_packed, batch = len(batch.ids_BS), batch.boundaries is not None, batch.to(device)
    documents_BS = batch.documents_BS if is_packed else None
    trace, dropping = RoutingTrace(), _dropping(config, model, rows, generator)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "autocast"):
        loss = model.loss(
            batch.ids_BS, batch.labels_BS, batch.positions_BS, documents_BS, trace, dropping
        )
    terms = objective.terms(loss, trace, rows, counted_T)
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()
    for name, term in terms.items():
        value = term.value.detach()
        sums.terms[name] = sums.terms[name] + value if name in sums.terms else value
        sums.weights[name] = term.weight
    sums.add_routing(trace, counted_T)


def _result(sums: _Sums, norm: Tensor) -> StepResult:
    """The sums as plain numbers, read from the device at once."""
    *values, grad_norm = torch.stack([*sums.terms.values(), norm.float()]).tolist()
    terms = dict(zip(sums.terms, values, strict=True))
    return StepResult(
        terms=terms,
        loss=sum(value * sums.weights[name] for name, value in terms.items()),
        grad_norm=grad_norm,
        loads=sum_over_ranks(sums.loads),
        dropped=sum(sums.dropped) / max(len(sums.dropped), 1),
    )


def _dropping(
    config: TrainConfig, model: Transformer, rows: int, generator: torch.Generator
) -> Dropping | None:
    """Capacities for one micro-batch, and which of its sequences they spare."""
    asked = config.balance.dropping
    if asked is None:
        return None
    exempt_B = None
    if asked.exempt_share:
        exempt_B = torch.rand(rows, generator=generator) < asked.exempt_share
        exempt_B = exempt_B.to(next(model.parameters()).device)
    devices = config.balance.devices_of(model.config)
    return Dropping(asked.capacity_factor, devices, asked.order, exempt_B)
