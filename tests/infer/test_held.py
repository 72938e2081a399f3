"""Weights held as codes give what the floats they stand for give, however many at a time."""

from pathlib import Path

import pytest
import torch
from kernels.test_expand import random_rows
from models import random_ids, random_model
from torch import Tensor
from torch.nn import functional as F

from moesaic.checkpoint.save import save
from moesaic.config.presets import get_preset
from moesaic.infer import held
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import Fed, TorchDecoder, build_decoder
from moesaic.infer.held import HeldExperts, HeldLinear
from moesaic.infer.load import load_held
from moesaic.infer.offload import ExpertCache
from moesaic.kernels import reference
from moesaic.kernels.native import panels
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Form, Kind, Rows
from moesaic.model.routing import Routing

KINDS: list[Kind] = ["float32", "bfloat16", "int8", "int4", "float8"]
if not isinstance(library(), str):
    KINDS.append("lossless")
DTYPES = [torch.float32, torch.bfloat16]
WITHIN = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest value: sums of some hundred terms, and some roundings of 2^-9."""
E, K, D, INNER = 6, 2, 96, 72


def some_rows(n: int, width: int, kind: Kind, generator: torch.Generator) -> Rows:
    """Of values of one size."""
    if kind != "float8":
        rows = Rows.empty(n, width, kind)
        rows.put_((torch.randn(n, width, generator=generator) / width**0.5).bfloat16())
        return rows
    rows = random_rows(n, width, kind, generator)
    rows.values.bitwise_and_(0xBF)  # below 2
    assert rows.scales is not None
    rows.scales.fill_(width**-0.5)
    return rows


def some_routing(n: int, generator: torch.Generator) -> Routing:
    """Of tokens of which none chooses the last expert."""
    scores_TE = torch.rand(n, E, generator=generator)
    scores_TE[:, -1] = 0
    weights_TK, ids_TK = scores_TE.topk(K)
    return Routing(scores_TE, ids_TK, weights_TK, torch.bincount(ids_TK.flatten(), minlength=E))


def some_experts(kind: Kind, generator: torch.Generator) -> HeldExperts:
    rows_in = some_rows(E * 2 * INNER, D, kind, generator)
    return HeldExperts(0, rows_in, some_rows(E * D, INNER, kind, generator))


def assert_near(got: Tensor, want: Tensor) -> None:
    assert (got.double() - want.double()).abs().max() <= WITHIN[got.dtype] * want.abs().max()


def copy_(to: Rows, rows: Rows) -> None:
    """Put rows in the place of others."""
    for there, here in (
        (to.values, rows.values),
        (to.scales, rows.scales),
        (to.others, rows.others),
    ):
        if there is not None and here is not None:
            there.copy_(here)


def cached(experts: HeldExperts, n_slots: int) -> HeldExperts:
    """The same experts, of which so many are there at a time."""

    def read(_: int, expert: int, rows_in: Rows, rows_out: Rows) -> None:
        for to, found in zip((rows_in, rows_out), experts.of_slot(expert), strict=True):
            copy_(to, found)

    kind = experts.rows_in.kind
    rooms = Rows.empty(n_slots * 2 * INNER, D, kind), Rows.empty(n_slots * D, INNER, kind)
    return HeldExperts(0, *rooms, ExpertCache({0: E}, *rooms, n_slots, read))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 2**11, 2**23])
@pytest.mark.parametrize("shape", [(1, 96), (3, 7, 96)])
def test_a_held_weight_is_applied_as_its_floats_are(
    shape: tuple[int, ...],
    at_once: int,
    kind: Kind,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(held, "_AT_ONCE", at_once)
    layer = HeldLinear(some_rows(50, 96, kind, generator))
    x = torch.randn(shape, generator=generator).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    assert_near(found, F.linear(x.double(), layer.weight.to(dtype).double()))


@pytest.mark.parametrize("serves", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 40])
def test_held_experts_give_the_reference(
    n: int,
    kind: Kind,
    dtype: torch.dtype,
    serves: bool,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    if serves and not panels.is_faster():
        pytest.skip("no compiled products here")
    monkeypatch.setattr(panels, "is_faster", lambda: serves)
    experts, routing = some_experts(kind, generator), some_routing(n, generator)
    x_TD = torch.randn(n, D, generator=generator).to(dtype)
    stacks = (
        rows.floats().to(dtype).double().unflatten(0, (E, -1))
        for rows in (experts.rows_in, experts.rows_out)
    )
    found = experts(x_TD, routing)
    assert found.dtype == dtype
    assert_near(
        found, reference.experts(x_TD.double(), routing.ids_TK, routing.weights_TK, *stacks)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_however_many_experts_come_at_a_time_and_in_whatever_order_the_bits_are_the_same(
    kind: Kind, dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    experts = some_experts(kind, generator)
    several = {n: cached(experts, n) for n in (1, 3, E)}
    for n in (40, 3):  # at the second time some are there from the first
        x_TD = torch.randn(n, D, generator=generator).to(dtype)
        routing = some_routing(n, generator)
        want = experts(x_TD, routing)
        assert all(torch.equal(each(x_TD, routing), want) for each in several.values())
        for at_once in (1, 5 * 2 * D * INNER):
            monkeypatch.setattr(held, "_AT_ONCE", at_once)
            assert torch.equal(experts(x_TD, routing), want)


def test_experts_are_found_in_other_slots(generator: torch.Generator):
    experts, routing = some_experts("int8", generator), some_routing(20, generator)
    x_TD = torch.randn(20, D, generator=generator)
    want = experts(x_TD, routing)
    order = torch.randperm(E, generator=generator)
    rows = (experts.rows_in, experts.rows_out)
    empty = [Rows.empty(len(each.values), each.width, each.kind) for each in rows]
    moved = HeldExperts(0, empty[0], empty[1])
    for expert, slot in enumerate(order.tolist()):
        for to, found in zip(moved.of_slot(slot), experts.of_slot(expert), strict=True):
            copy_(to, found)
    moved.slot_of_expert = order
    assert torch.equal(moved(x_TD, routing), want)


@pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")
@pytest.mark.parametrize(
    ("kind", "n"), [("int8", 513), ("int4", 513), ("weights", 129), ("lossless", 129)]
)
def test_long_prompts_go_through_the_floats_that_codes_stand_for(
    kind: Form, n: int, tmp_path: Path
):
    config = get_preset("tiny-v2").changed(num_hidden_layers=2)
    save(tmp_path, config, random_model(config).state_dict(), "float32")
    dtype = torch.bfloat16 if kind == "lossless" else torch.float32
    model = load_held(tmp_path, dtype, form=kind)
    pool = BlockPool(config, 512, block=8, dtype=dtype)
    through, decoder = TorchDecoder(model, pool), build_decoder(model, pool, kind)
    for length, is_long in ((n, True), (n - 1, False)):
        fed = Fed(Held(pool), tuple(random_ids(config, length).tolist()))
        [want] = through.feed([Fed(Held(pool), fed.ids)])
        [found] = decoder.feed([fed])
        assert torch.equal(found.logits_TV, want.logits_TV) == is_long
        torch.testing.assert_close(found.logits_TV, want.logits_TV, atol=0.1, rtol=0.1)
