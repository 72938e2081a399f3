"""Slices whose frozen experts are brought layer by layer equal those that hold them all."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from slices import MakeBase, MakeBatch, loss_of, natural, run_in
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.config.esft import Hold
from moesaic.data.batch import Batch
from moesaic.errors import CheckpointError
from moesaic.esft import hold as holding
from moesaic.esft.hold import is_at_hand
from moesaic.esft.park import load_slice
from moesaic.esft.recipe import train_slice
from moesaic.esft.select import Selection
from moesaic.model.frozen import DenseExperts
from moesaic.model.streamed import Ring, StreamedExperts
from moesaic.model.transformer import Transformer

STREAMED: tuple[Hold, ...] = ("cpu", "disk")
MODELS = [
    ("v1", "float32", None),
    ("v2", "bfloat16", None),
    ("v3", "float32", "bfloat16"),
    ("v3", "float32", None),
]
"""Family, type of what is trained, type of the products."""
UNEVEN = Selection(experts={1: (5,), 2: (0, 3, 7, 4)}, frozen={1: (0, 2, 3, 4, 7), 2: (6,)})


def _found(model: Transformer, batches: Iterable[Batch]) -> list[Tensor]:
    """The loss of each batch, and the gradients of all together, which are cleared."""
    losses: list[Tensor] = []
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [*losses, *gradients]


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def _ring(model: Transformer) -> Ring:
    frozen = next(iter(model.moe_layers().values())).experts.frozen
    assert isinstance(frozen, StreamedExperts)
    return frozen.ring


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("hold", STREAMED)
@pytest.mark.parametrize(("family", "dtype", "compute"), MODELS)
def test_losses_and_gradients_are_the_same_bit_for_bit(
    family: str,
    dtype: str,
    compute: str | None,
    hold: Hold,
    recompute: bool,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base = make_base(family)
    batches = [make_batch(2, 16, generator) for _ in range(3)]
    for selection in (natural(base), UNEVEN):
        held, streamed = (
            load_slice(base, selection, dtype, "cpu", compute, recompute, form)
            for form in ("weights", hold)
        )
        assert _same(_found(streamed, batches), _found(held, batches))
        assert _ring(streamed).traffic.missed == 1


@pytest.mark.parametrize("hold", STREAMED)
@pytest.mark.parametrize("stored", ["float32", "float8_e4m3fn"])
def test_whatever_type_the_checkpoint_stores_is_brought_in_that_of_the_products(
    stored: str,
    hold: Hold,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base("v3", stored), make_batch(2, 16, generator)
    selection = natural(base)
    held, streamed = (
        load_slice(base, selection, "float32", "cpu", "bfloat16", hold=form)
        for form in ("weights", hold)
    )
    assert _same(_found(streamed, [batch]), _found(held, [batch]))


@pytest.mark.parametrize("hold", STREAMED)
def test_evaluation_and_steps_that_were_broken_off_leave_no_trace(
    hold: Hold, make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base, batch = make_base("v3", num_hidden_layers=5), make_batch(2, 16, generator)
    selection = natural(base)
    held, streamed = (load_slice(base, selection, hold=form) for form in ("weights", hold))
    expected = _found(held, [batch])
    assert _same(_found(streamed, [batch]), expected)
    with torch.inference_mode():
        assert torch.equal(loss_of(streamed, batch), expected[0])
    loss_of(streamed, batch)  # no backward pass
    assert _same(_found(streamed, [batch]), expected)
    for break_off in range(len(_ring(streamed).layers)):
        _ring(streamed).ask(break_off)  # and nothing more of that pass
        assert _same(_found(streamed, [batch]), expected)


def test_experts_in_the_memory_that_computes_are_used_where_they_lie(
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holding, "is_at_hand", is_at_hand)
    base, batch = make_base("v2"), make_batch(2, 16, generator)
    held, at_hand = (load_slice(base, natural(base), hold=form) for form in ("weights", "cpu"))
    for moe in at_hand.moe_layers().values():
        assert isinstance(moe.experts.frozen, DenseExperts)
    assert _same(_found(at_hand, [batch]), _found(held, [batch]))
    assert not is_at_hand("cpu", torch.device("cuda"))
    assert not is_at_hand("disk", torch.device("cpu"))


def test_nothing_frozen_is_held_but_two_layers(make_base: MakeBase) -> None:
    base = make_base("v2", num_hidden_layers=9)
    selection = Selection(experts={1: (0,)}).natural(Reader(base).config)
    streamed = load_slice(base, selection, "bfloat16", hold="disk")
    one = 8 * 3 * 8 * 16 * 2
    assert len(_ring(streamed).layers) == 8
    assert _ring(streamed).n_bytes == 2 * one


def test_a_file_that_is_gone_is_told_with_what_to_do_and_may_come_back(
    make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base, batch = make_base("v2", num_hidden_layers=5), make_batch(2, 16, generator)
    streamed = load_slice(base, natural(base), hold="disk")
    expected = _found(streamed, [batch])
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match=r"model-.*cannot be read .*; fetch the file again"):
        _found(streamed, [batch, batch])  # two layers are there still
    shutil.copytree(base.with_name("elsewhere"), base)
    streamed.zero_grad()
    assert _same(_found(streamed, [batch]), expected)


@pytest.mark.parametrize("hold", STREAMED)
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_a_run_comes_to_the_same_weights(
    precision: str, hold: Hold, home: Path, tmp_path: Path
) -> None:
    def run(hold: Hold) -> dict[str, Tensor]:
        esft = {"experts": 3, "score_tokens": 100, "variant": "natural", "hold": hold}
        changes = {"precision": precision, "recompute": precision == "mixed"}
        config = run_in(home, tmp_path / hold, esft, steps=3, **changes)
        return train_slice(config).training.model.state_dict()

    held, streamed = run("weights"), run(hold)
    assert held.keys() == streamed.keys()
    assert all(torch.equal(held[name], streamed[name]) for name in held)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("hold", STREAMED)
def test_a_gpu_computes_the_same(
    hold: Hold,
    recompute: bool,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base = make_base("v3", hidden_size=256, moe_intermediate_size=128, num_hidden_layers=6)
    batches = [make_batch(8, 64, generator).to(torch.device("cuda")) for _ in range(4)]
    held, streamed = (
        load_slice(
            base,
            natural(base),
            "float32",
            "cuda",
            "bfloat16",
            recompute,
            form,
        )
        for form in ("weights", hold)
    )
    for found, expected in zip(_found(streamed, batches), _found(held, batches), strict=True):
        # sums by atomic additions differ in their order; another layer's weights differ wholly
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert _ring(streamed).traffic.missed == 1
