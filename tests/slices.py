"""What tests of slices share: a base with its text, runs on both, and the loss of a batch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import save
from moesaic.config.data import DataConfig
from moesaic.config.model import ModelConfig
from moesaic.config.train import TrainConfig
from moesaic.data.batch import Batch
from moesaic.data.bpe import train_on_sources
from moesaic.esft.select import Selection
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer

MakeBase = Callable[..., Path]
MakeBatch = Callable[..., Batch]
Run = Callable[..., TrainConfig]

TRAINED = Selection(experts={1: (5, 2, 1), 2: (0, 3, 7)})
"""Experts of the models in conftest.py."""
_TEXT = "Line {n}: a router sends every token to a few experts, and line {m} says so again.\n"


def natural(base: Path) -> Selection:
    """`TRAINED`, with all other experts beside them."""
    return TRAINED.natural(Reader(base).config)


def loss_of(model: Transformer, batch: Batch) -> Tensor:
    """All losses of a batch together."""
    found = model.loss(batch.ids_BS, batch.labels_BS, batch.positions_BS, batch.documents_BS)
    return torch.stack([found.next_token, *found.mtp]).sum()


def assert_same_lesson(part: Transformer, full: Transformer, batch: Batch) -> None:
    """The slice and the model have one loss, and the trained experts one gradient."""
    expected, found = loss_of(full, batch), loss_of(part, batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    expected.backward()
    found.backward()
    for layer, ids in TRAINED.experts.items():
        whole, stack = full.moe_layers()[layer].experts, part.moe_layers()[layer].experts
        assert stack.stacked == tuple(sorted(ids))
        for name in ("gate_up_proj", "down_proj"):
            grad, wanted = getattr(stack, name).grad, getattr(whole, name).grad
            torch.testing.assert_close(grad, wanted[sorted(ids)], rtol=1e-5, atol=1e-6)


def flip_last_bit(path: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def write_home(folder: Path, config: ModelConfig, dtype: str) -> Path:
    """``lines.txt``, and ``base``, a checkpoint with a tokenizer for it."""
    lines = folder / "lines.txt"
    lines.write_text("\n".join(_TEXT.format(n=n, m=7 * n) for n in range(90)))
    save(folder / "base", config, build_model(config, seed=5).state_dict(), dtype)
    data = DataConfig.parse({"sources": [{"path": str(lines)}], "seq_len": 24})
    train_on_sources(data, 300).save(folder / "base")
    return folder


def run_in(home: Path, folder: Path, esft: dict[str, Any] | None, **changes: Any) -> TrainConfig:
    """Four steps on short lines."""
    source = {"path": str(home / "lines.txt"), "separator": "\n\n"}
    settings = {
        "folder": str(folder),
        "model": str(home / "base"),
        "device": "cpu",
        "steps": 4,
        "data": {"seq_len": 24, "sources": [source], "held_out_share": 0.2},
        "batch": {"rows": 4, "micro_rows": 2},
        "schedule": {"learning_rate": 1e-2, "warmup_steps": 1},
        "esft": esft,
        **changes,
    }
    return TrainConfig.parse(settings)


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks a run to stop once it has taken so many steps."""
    asked: Iterator[bool] = iter([False] * steps + [True])
    return lambda: next(asked)
