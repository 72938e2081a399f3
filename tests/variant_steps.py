"""Training steps of every variant of a slice, and what the planner says of their peaks.

They run on the CPU in the forms of a GPU: one row for each pair of token and expert, and fused
attention.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.load import Reader
from moesaic.config.esft import Hold, HoldLinears
from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.config.train import OptimizerConfig, Precision, TrainConfig
from moesaic.data.batch import Batch
from moesaic.esft.hold import hold_rest_
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.kernels import grouped
from moesaic.kernels.attention import fused
from moesaic.kernels.native import panels, rows
from moesaic.model import attention, mla
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import torch_dtype
from moesaic.model.transformer import Transformer
from moesaic.planner.adapters import Adapters, adapted_tensors
from moesaic.planner.memory import train_memory
from moesaic.planner.params import Plan, params
from moesaic.planner.precision import PRECISIONS, PrecisionName
from moesaic.train.optim import build_optimizer
from moesaic.train.setup import types_of
from moesaic.train.step import Rates, take_step

TRAINED = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """What is held beside the trained experts, and how."""

    frozen: int | None
    """Experts of each layer; None trains the whole model."""
    hold: Hold = "weights"
    linears: HoldLinears = "weights"
    lora: LoraConfig | None = None
    """What is trained beside the experts, which are frozen then."""

    def plan(self, config: ModelConfig) -> Plan:
        """What the planner is asked."""
        if self.frozen is None:
            return params(config, None)
        found = params(config, TRAINED, self.frozen)
        adapters = None if self.lora is None else Adapters.of(config, self.lora, TRAINED)
        return replace(found, hold=self.hold, hold_linears=self.linears, adapters=adapters)

    def selection(self, config: ModelConfig) -> Selection:
        """The first experts trained, the next ones frozen."""
        chosen = {layer: tuple(range(TRAINED)) for layer in config.moe_layers}
        beside = tuple(range(TRAINED, TRAINED + (self.frozen or 0)))
        frozen = dict.fromkeys(config.moe_layers, beside) if beside else {}
        return Selection(experts=chosen, frozen=frozen)


VARIANTS = {
    "A": Variant(0),
    "B": Variant(16),
    "C": Variant(56),
    "D-int8": Variant(56, "int8"),
    "D-int4": Variant(56, "int4"),
    "D-int4 all": Variant(56, "int4", "int8"),
    "E": Variant(56, "disk"),
    "LoRA masked": Variant(0, lora=LoraConfig(rank=8)),
    "LoRA natural": Variant(56, lora=LoraConfig(rank=8)),
    "LoRA experts": Variant(56, lora=LoraConfig(rank=8, targets=("experts",))),
    "QLoRA": Variant(56, "int4", "int4", LoraConfig(rank=8)),
    "full": Variant(None),
}


def take_forms_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted rows, fused attention, and nothing that is compiled for a CPU."""
    monkeypatch.setattr(rows, "serve", lambda *tensors: False)
    monkeypatch.setattr(panels, "serve", lambda left, right: False)
    monkeypatch.setattr(grouped, "_one_row_per_pair_serves", lambda x_TD, widths: True)
    for module in (attention, mla):
        monkeypatch.setattr(module, "attention", fused)


def run_config(
    precision: Precision, recompute: bool, optimizer: OptimizerConfig, tokens: int
) -> TrainConfig:
    return TrainConfig.parse(
        {
            "folder": "run",
            "model": "tiny",
            "steps": 2,
            "batch": {"rows": 1},
            "schedule": {"learning_rate": 1e-3},
            "data": {"seq_len": tokens, "sources": [{"path": "corpus:math"}]},
            "precision": precision,
            "recompute": recompute,
            "optimizer": optimizer.model_dump(),
        }
    )


def load_variant(base: Reader | Path, variant: Variant, run: TrainConfig) -> Transformer:
    """A slice; of the first experts of each layer."""
    reader = base if isinstance(base, Reader) else Reader(base)
    dtype, compute = types_of(run.precision)
    chosen = variant.selection(reader.config)
    held = chosen if variant.lora is None else chosen.at_rest()
    model = load_slice(reader, held, dtype, "cpu", compute, run.recompute, variant.hold)
    hold_rest_(model, variant.linears, park_embedding=False)
    if variant.lora is not None:
        adapted = adapted_tensors(reader.config, variant.lora, chosen.experts)
        make = fresh_factors(variant.lora.rank, torch.Generator().manual_seed(0))
        adapt_(model, adapted, make, variant.lora.scale, torch_dtype(dtype))
    return model


def take_two_steps(model: Transformer, run: TrainConfig, passes: int) -> None:
    """In the second one the moments are there from the start."""
    generator, length = torch.Generator().manual_seed(0), run.data.seq_len
    optimizer = build_optimizer(model, run.optimizer)
    ids_BS = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    positions_BS = torch.arange(length).expand_as(ids_BS).clone()
    batch = Batch(ids_BS, ids_BS.roll(-1, 1), positions_BS, torch.zeros_like(ids_BS))
    for _ in range(2):
        take_step(model, optimizer, [batch] * passes, Rates(1e-3, 0.3, 0.0), run, generator)


def planned_peak(config: ModelConfig, variant: Variant, run: TrainConfig, passes: int) -> int:
    names: dict[Precision, PrecisionName] = {"bfloat16": "bfloat16", "mixed": "mixed"}
    precision = PRECISIONS[names.get(run.precision, "float32")].changed(
        run.optimizer.states, run.optimizer.gradients
    )
    plan, length = variant.plan(config), run.data.seq_len
    return train_memory(plan, precision, 1, length, run.recompute, passes).total
