"""Adapters of small random models, as tests write and change them."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors, write_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.config.lora import LoraConfig
from moesaic.config.merge import Conditions
from moesaic.esft.adapter import write_adapter
from moesaic.esft.manifest import Sign, Work
from moesaic.esft.select import Selection
from moesaic.esft.sign import read_private_key, sign
from moesaic.kernels.adapted import LowRank
from moesaic.model.adapt import MakeFactors, adapt_
from moesaic.model.build import load_model
from moesaic.model.transformer import Transformer
from moesaic.planner.adapters import adapted_tensors
from moesaic.planner.inventory import TensorSpec

MakeBase = Callable[..., Path]


def signer(key: Path) -> Sign:
    return partial(sign, key=read_private_key(key))


def trusting(home: Path, *names: str) -> Conditions:
    return Conditions(trusted=tuple(str(home / name) for name in names))


EXPERTS = {1: (5, 2), 2: (0, 3, 7)}
TARGETS = ("attention", "shared_experts", "experts", "dense")
LORA = LoraConfig(rank=4, alpha=6.0, targets=TARGETS)
GOLDEN = Path(__file__).parent / "peft"
"""Adapters of attention and shared experts, written by PEFT 0.21.2 for `random_model`, with the
first logits of its last position as transformers 5.23 computes them."""


def random_factors(scale: float = 0.2) -> MakeFactors:
    generator = torch.Generator().manual_seed(7)

    def make(spec: TensorSpec) -> LowRank:
        rows, columns = spec.shape
        factors = torch.empty(LORA.rank, columns), torch.empty(rows, LORA.rank)
        return LowRank(*(part.normal_(0.0, scale, generator=generator) for part in factors))

    return make


def adapted_base(base: Path, scale: float = 0.2) -> Transformer:
    """The model in a checkpoint, with adapters that change it."""
    model = load_model(base)
    adapted = adapted_tensors(model.config, LORA, EXPERTS)
    adapt_(model, adapted, random_factors(scale), LORA.scale, torch.float32)
    return model


def written(
    folder: Path, base: Path, model: Transformer | None = None, sign: Sign | None = None
) -> Path:
    """An adapter of that base."""
    work = Work(base=digest(base), run={"steps": 2}, data=("math",), tokens=100, steps=2)
    model = adapted_base(base) if model is None else model
    write_adapter(folder, model, LORA, Selection(experts=EXPERTS), work, sign)
    return folder


def held_in(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor as it is stored."""
    parts = [read_safetensors(path) for path in Reader(checkpoint).report.files]
    return {name: tensor for part in parts for name, tensor in part.items()}


def rewritten(
    adapter: Path, settings: Mapping[str, Any] | None = None, **changes: Tensor | None
) -> Path:
    """The same adapter from elsewhere: other settings, tensors replaced or left out."""
    (adapter / "manifest.json").unlink(missing_ok=True)
    path = adapter / "adapter_config.json"
    values = {**json.loads(path.read_text()), **(settings or {})}
    path.write_text(json.dumps(values))
    path = adapter / "adapter_model.safetensors"
    held = {**read_safetensors(path), **changes}
    write_safetensors(path, {name: tensor for name, tensor in held.items() if tensor is not None})
    return adapter
