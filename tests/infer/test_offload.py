"""Experts that do not fit in memory: read when they are chosen, and the numbers stay the same."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.presets import get_preset
from moesaic.errors import CheckpointError, ConfigError
from moesaic.infer import offload
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import Decoder, Fed, TorchDecoder, build_decoder
from moesaic.infer.held import HeldExperts, cache_of
from moesaic.infer.load import load_held, slots_in
from moesaic.infer.offload import ExpertCache
from moesaic.infer.stored import Sizes, Source
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Form, Rows
from moesaic.model.transformer import Transformer

compiled = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """``written(preset, quantised=None, **changes)``: a checkpoint with random weights."""

    def write(preset: str, quantised: Any = None, group: int = 64, **changes: Any) -> Path:
        config, folder = get_preset(preset).changed(**changes), tmp_path / "plain"
        save(folder, config, random_model(config).state_dict(), "bfloat16")
        if quantised is None:
            return folder
        quantise_folder(Reader(folder), tmp_path / "fewer", quantised, group, lambda _: None)
        return tmp_path / "fewer"

    return write


TYPES = {"lossless": torch.bfloat16}
"""Of weights, where they are not float32."""


def memory_for(folder: Path, slots: int, form: Form = "weights") -> int:
    sizes = Sizes.of(Source(Reader(folder), TYPES.get(form, torch.float32), form, keeps_codes=True))
    return sizes.resident + slots * sizes.expert


def decoder_of(model: Transformer) -> Decoder:
    return build_decoder(model, BlockPool(model.config, 32, block=8, dtype=torch.float32))


def logits_of(decoder: Decoder, rows: list[list[int]], seed: int = 0) -> list[Tensor]:
    """Of every token of some sequences, fed in pieces of random sizes in a random order."""
    draw = random.Random(seed)
    held, done = [Held(decoder.pool) for _ in rows], [0] * len(rows)
    found: list[list[Tensor]] = [[] for _ in rows]
    while any(done[i] < len(row) for i, row in enumerate(rows)):
        fed, who = [], []
        for i, row in enumerate(rows):
            n = min(draw.choice((0, 1, 1, 2, 5)), len(row) - done[i])
            if n:
                fed.append(Fed(held[i], tuple(row[done[i] : done[i] + n]), "all"))
                who.append(i)
                done[i] += n
        for i, one in zip(who, decoder.feed(fed) if fed else [], strict=True):
            found[i].append(one.logits_TV)
    for one in held:
        one.release()
    return [torch.cat(each) for each in found]


def counts(model: Transformer) -> ExpertCache:
    cache = cache_of(model)
    assert cache is not None
    return cache


@compiled
@pytest.mark.parametrize(
    ("family", "slots"),
    [("tiny-v1", 3), ("tiny-v2", 3), ("tiny-v2", 64), ("tiny-v3", 3), ("tiny-v3", 11)],
)
def test_whatever_fits_the_numbers_are_the_same_to_the_last_bit(
    written: Written, family: str, slots: int
):
    folder = written(family, num_experts_per_tok=3)
    whole = load_held(folder)
    part = load_held(folder, memory=memory_for(folder, slots))
    assert counts(part).n_slots == min(slots, counts(part).n_experts)
    rows = [random_ids(whole.config, 10, seed=seed).tolist() for seed in range(2)]
    expected = logits_of(decoder_of(whole), rows)
    for seed in range(2):
        for got, want in zip(logits_of(decoder_of(part), rows, seed), expected, strict=True):
            assert torch.equal(got, want)
    assert counts(part).counts.asked > counts(part).counts.held


@compiled
@pytest.mark.parametrize("form", ["int8", "int4", "lossless"])
def test_with_weights_in_fewer_bits_too(written: Written, form: Form):
    folder = written("tiny-v3", num_experts_per_tok=3, num_hidden_layers=2)
    dtype = TYPES.get(form, torch.float32)
    whole = load_held(folder, dtype, form=form)
    part = load_held(folder, dtype, form=form, memory=memory_for(folder, 4, form))
    ids = random_ids(whole.config, 8).tolist()
    pairs = zip(
        logits_of(decoder_of(part), [ids]), logits_of(decoder_of(whole), [ids]), strict=True
    )
    assert all(torch.equal(got, want) for got, want in pairs)


@compiled
@pytest.mark.parametrize("quantised", ["4", "8", "fp8"])
def test_with_codes_as_they_are_stored_too(written: Written, quantised: str):
    sizes = {"moe_intermediate_size": 64, "num_experts_per_tok": 3, "num_hidden_layers": 2}
    folder = written("tiny-v2", quantised, **sizes)
    whole = load_held(folder)
    part = load_held(folder, memory=memory_for(folder, 4))
    ids = random_ids(whole.config, 24).tolist()
    pairs = zip(
        logits_of(decoder_of(part), [ids]), logits_of(decoder_of(whole), [ids]), strict=True
    )
    assert all(torch.equal(got, want) for got, want in pairs)


@pytest.mark.parametrize("family", ["tiny-v1", "tiny-v2", "tiny-v3"])
def test_a_prompt_through_torch_gives_the_numbers_of_the_model(written: Written, family: str):
    folder = written(family, num_experts_per_tok=3, num_hidden_layers=2)
    whole = load_held(folder)
    ids = random_ids(whole.config, 20)
    expected = whole(ids.unsqueeze(0))[0]
    found = []
    for slots in (3, 5, 64):
        part = load_held(folder, memory=memory_for(folder, slots))
        decoder = TorchDecoder(part, BlockPool(part.config, 8, block=8, dtype=torch.float32))
        [one] = decoder.feed([Fed(Held(decoder.pool), tuple(ids.tolist()), "all")])
        torch.testing.assert_close(one.logits_TV, expected, atol=2e-4, rtol=2e-4)
        found.append(one.logits_TV)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_no_more_bytes_are_held_than_were_given(written: Written):
    folder = written("tiny-v3", num_experts_per_tok=3)
    for slots in (3, 7, 20):
        memory = memory_for(folder, slots)
        model = load_held(folder, memory=memory)
        experts = {
            rows.values.data_ptr(): rows.n_bytes
            for moe in model.moe_layers().values()
            if isinstance(held := moe.experts, HeldExperts)
            for rows in (held.rows_in, held.rows_out)
        }
        tensors = [*model.parameters(), *model.buffers()]
        assert sum(experts.values()) + sum(each.nbytes for each in tensors) <= memory


def test_too_little_memory_is_refused_before_anything_is_read(written: Written):
    folder = written("tiny-v2", num_experts_per_tok=3)
    enough = memory_for(folder, 3)
    with pytest.raises(
        ConfigError,
        match=r"memory=.* is too little for .*: what every token needs takes .*, and the 3 experts "
        r"of a token in a layer take .*; give at least memory=\d+KiB, or \d+KiB with "
        r"dtype=bfloat16, \d+KiB with form=int8, \d+KiB with form=int4",
    ):
        load_held(folder, memory=enough - 1)
    assert slots_in(Source(Reader(folder), torch.float32, "weights", True), enough) == 3


@compiled
def test_an_expert_that_cannot_be_read_ends_the_pass_and_not_the_decoder(written: Written):
    folder = written("tiny-v2", num_experts_per_tok=3)
    model = load_held(folder, memory=memory_for(folder, 4))
    decoder = decoder_of(model)
    held = Held(decoder.pool)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="changed its size before tensor"):
        decoder.feed([Fed(held, (1, 2))])
    assert held.length == 0
    file.write_bytes(content)
    [found] = decoder.feed([Fed(held, (1, 2))])
    [expected] = (logits[-1:] for logits in logits_of(decoder_of(load_held(folder)), [[1, 2]]))
    assert torch.equal(found.logits_TV, expected)


def cache_of_numbers(slots: int, experts: int = 8, layers: int = 2) -> ExpertCache:
    """A cache of experts whose weights are their layer and number."""

    def read(layer: int, expert: int, rows_in: Rows, rows_out: Rows) -> None:
        rows_in.values.fill_(layer)
        rows_out.values.fill_(expert)

    rooms = Rows.empty(2 * slots, 4, "float32"), Rows.empty(4 * slots, 1, "float32")
    return ExpertCache(dict.fromkeys(range(layers), experts), *rooms, slots, read)


def holds(cache: ExpertCache, layer: int, expert: int) -> bool:
    slot = int(cache.slots[layer][expert])
    if slot < 0:
        return False
    rows_in, rows_out = cache.expert_rows(slot)
    assert rows_in.values.eq(layer).all()
    assert rows_out.values.eq(expert).all()
    return True


@pytest.mark.parametrize("slots", [3, 5, 16])
def test_what_is_needed_is_there_in_whatever_order_it_is_asked_for(slots: int):
    cache, draw = cache_of_numbers(slots), random.Random(slots)
    for _ in range(300):
        layer = draw.randrange(2)
        uses = dict.fromkeys(draw.sample(range(8), draw.randint(1, 3)), 1)
        if draw.random() < 0.3:
            seen = [(e, rows[1].values[0].item()) for e, *rows in cache.each(layer, uses)]
            assert sorted(seen) == sorted((e, float(e)) for e in uses)
        else:
            cache.need(layer, uses, draw.sample(range(8), 2))
            assert all(holds(cache, layer, expert) for expert in uses)
    told = cache.counts
    assert told.asked >= told.held + told.useful
    assert told.bytes_read == told.read * (8 + 4) * 4


def test_what_is_used_most_stays():
    cache = cache_of_numbers(3, layers=1)
    for other in (1, 2, 3, 4, 5, 6, 7):
        cache.need(0, {0: 1, other: 1})
    assert holds(cache, 0, 0)
    assert cache.counts.held == 6


def test_what_was_used_long_ago_goes_before_what_is_used_now():
    cache = cache_of_numbers(2, layers=1)
    for _ in range(20):
        cache.need(0, {0: 1})
    for _ in range(400):
        cache.need(0, {1: 1})
    for _ in range(15):
        cache.need(0, {2: 1})
    assert holds(cache, 0, 1)
    assert not holds(cache, 0, 0)


def test_a_right_guess_is_useful_and_a_wrong_one_harms_nothing():
    cache = cache_of_numbers(6)
    cache.need(0, {0: 1}, guess=[3, 4])
    cache.need(1, {3: 1, 5: 1})
    assert (cache.counts.useful, cache.counts.held, cache.counts.asked) == (1, 0, 3)
    assert holds(cache, 1, 3)
    assert holds(cache, 1, 5)


def test_heat_does_not_run_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(offload, "_HALF_LIFE", 1)
    cache = cache_of_numbers(2, layers=1)
    for _ in range(1000):
        cache.need(0, {0: 9})
    cache.need(0, {1: 1})
    cache.need(0, {2: 1})
    assert holds(cache, 0, 0)
