"""A shard beside its base answers as the merged checkpoint does, and harms no other answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import prompts, wait_for
from shards import EXPERTS, OTHERS, Home, MakeHome, answers, answers_of, ask, told

from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError, ShardError
from moesaic.infer.decoder import CpuDecoder
from moesaic.infer.job import Job
from moesaic.serve.errors import RefusedError


@pytest.mark.parametrize(
    ("family", "dtype", "computed", "trained"),
    [
        ("v1", "float32", "float32", {}),
        ("v2", "bfloat16", "bfloat16", {"shared_experts": True}),
        ("v3", "bfloat16", "float32", {"modules": ("router", "attention")}),
        ("v3", "float8_e4m3fn", "bfloat16", {"shared_experts": True, "non_expert_modules": True}),
    ],
)
def test_a_shard_answers_as_the_merged_checkpoint_to_the_last_bit(
    make_home: MakeHome, family: str, dtype: str, computed: str, trained: dict[str, Any]
):
    home, rows = make_home(family, dtype), prompts(3, longest=40)
    shard = home.shard(
        "law", experts={**EXPERTS, **({3: (1, 4, 6)} if family == "v3" else {})}, **trained
    )
    served = home.served(shards={"law": shard}, dtype=computed)
    with served.engine:
        found = answers(served, "base+law", rows)
        plain = answers(served, "base", rows)
    assert found == answers_of(home, home.merged(shard), rows, dtype=computed)
    assert plain == answers_of(home, home.base, rows, dtype=computed)
    assert found != plain


def test_the_compiled_decoder_serves_shards_where_there_is_one(home: Home):
    served = home.served(shards={"law": home.shard("law")})
    with served.engine:
        decoder = served.engine.decoder
        shard = served.shard_of("base+law")
    assert shard is not None
    assert type(shard.variant.decoder) is type(decoder)
    assert isinstance(decoder, CpuDecoder)


def test_requests_for_several_shards_and_the_base_are_answered_together(home: Home):
    shards = {
        "law": home.shard("law"),
        "maths": home.shard("maths", OTHERS, seed=1),
        "all": home.shard("all", OTHERS, seed=2, non_expert_modules=True),
    }
    served, rows = home.served(shards=shards, max_running=7), prompts(4, seed=4)
    names = ["base", *(f"base+{name}" for name in shards)]
    folders = [home.base, *(home.merged(shard) for shard in shards.values())]
    with served.engine as engine:
        asked = [(name, row, ask(served, name, row)) for row in rows for name in names]
        found = {(name, tuple(row)): told(list(stream)) for name, row, stream in asked}
        wait_for(lambda: engine.stats().blocks_free == 64)
    for name, folder in zip(names, folders, strict=True):
        expected = answers_of(home, folder, rows)
        assert [found[name, tuple(row)] for row in rows] == expected, name


def test_answers_are_right_where_sequences_share_passes_and_prompts(home: Home):
    shard = home.shard("law", non_expert_modules=True)
    served = home.served(shards={"law": shard}, deterministic=False, cache_tokens=1024)
    start = prompts(1)[0] * 9
    rows = [start[:70] + row[:20] for row in prompts(4, seed=3)]
    merged = answers_of(home, home.merged(shard), rows)
    base = answers_of(home, home.base, rows)
    with served.engine as engine:
        for _ in range(2):
            asked = [(ask(served, "base", row), ask(served, "base+law", row)) for row in rows]
            pairs = [(told(list(plain)), told(list(changed))) for plain, changed in asked]
            for (plain, changed), expected, other in zip(pairs, base, merged, strict=True):
                assert [token for token, _ in plain] == [token for token, _ in expected]
                assert [token for token, _ in changed] == [token for token, _ in other]
        assert engine.stats().meter.tokens["found"] > 0


def test_only_what_a_shard_trained_is_held_twice(home: Home):
    served = home.served(shards={"law": home.shard("law", modules=("router",))})
    base, shard = served.engine.decoder.model, served.shard_of("base+law")
    served.engine.close()
    assert shard is not None
    variant = shard.variant.decoder.model
    own = {
        name
        for name, parameter in variant.named_parameters()
        if parameter.data_ptr() != base.get_parameter(name).data_ptr()
    }
    assert own == {f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)}
    config = base.config
    for layer in (1, 2):
        assert len(base.moe_layers()[layer].experts.down_proj) == config.experts + 3


def test_a_shard_is_loaded_and_unloaded_while_others_are_answered(home: Home):
    law, maths = home.shard("law"), home.shard("maths", OTHERS, seed=1)
    served = home.served(shards={"law": law}, spare_experts=0, max_running=8)
    assert served.shards is not None
    [row] = prompts(1)
    with served.engine as engine:
        running = ask(served, "base+law", row, max_new_tokens=60)
        plain = ask(served, "base", row, max_new_tokens=60)
        next(iter(running))
        served.shards.unload("law")
        with pytest.raises(RefusedError, match=r"no model 'base\+law' here; ask for 'base'"):
            ask(served, "base+law", row)
        rest = [piece.token for piece in running]
        wait_for(lambda: not engine.stats().running)
        served.shards.load("maths", maths)
        assert answers(served, "base+maths", [row]) == answers_of(home, home.merged(maths), [row])
        tokens = [piece.token for piece in plain]
    alone = home.served(home.merged(law))
    with alone.engine:
        whole = [piece.token for piece in ask(alone, alone.name, row, max_new_tokens=60)]
    assert whole[1:] == rest
    again = home.served()
    with again.engine:
        assert [piece.token for piece in ask(again, "base", row, max_new_tokens=60)] == tokens


def test_a_shard_waits_for_the_room_of_one_that_is_still_used(home: Home):
    law, maths = home.shard("law"), home.shard("maths", OTHERS, seed=1)
    served = home.served(shards={"law": law})
    assert served.shards is not None
    with served.engine as engine:
        running = ask(served, "base+law", [5, 6], max_new_tokens=100)
        next(iter(running))
        served.shards.unload("law")
        with pytest.raises(
            RequestError, match="3 experts of layer 1 need room, and there is room "
        ):
            served.shards.load("maths", maths)
        running.cancel()
        wait_for(lambda: not engine.stats().running)
        served.shards.load("maths", maths)
        assert served.names == ["base", "base+maths"]


def test_a_request_that_comes_after_unloading_is_told(home: Home):
    served = home.served(shards={"law": home.shard("law")})
    assert served.shards is not None
    loaded = served.shard_of("base+law")
    assert loaded is not None
    with served.engine as engine:
        served.shards.unload("law")
        with pytest.raises(RequestError, match="the shard was unloaded before the request began"):
            engine.submit(Job((5,), GenerateConfig(max_new_tokens=1), variant=loaded.variant))


def test_what_is_no_shard_of_the_base_is_refused_and_its_room_given_back(
    home: Home, make_home: MakeHome, tmp_path: Path
):
    served = home.served(shards={"law": home.shard("law")}, spare_experts=3)
    other = Home(tmp_path / "other", home.tokenizer)
    config = served.engine.decoder.model.config
    Home.make(tmp_path / "other", config, home.tokenizer, "float32")
    stranger, shards = other.shard("maths"), served.shards
    assert shards is not None
    with served.engine:
        with pytest.raises(ShardError, match=r"trained from base \w{12}, .*; fetch the base"):
            shards.load("maths", stranger)
        with pytest.raises(ShardError, match="a shard 'law' is loaded; unload it"):
            shards.load("law", home.shard("maths", OTHERS))
        with pytest.raises(ShardError, match=r"'a\+b' cannot be the name of a shard; take letters"):
            shards.load("a+b", home.folder / "maths")
        with pytest.raises(ShardError, match="there is no shard 'lav' here; did you mean 'law'"):
            shards.unload("lav")
        shards.load("maths", home.folder / "maths")
        assert served.names == ["base", "base+law", "base+maths"]


def test_a_shard_that_was_changed_is_refused(home: Home):
    shard = home.shard("law")
    data = bytearray((shard / "shard.safetensors").read_bytes())
    data[-2] ^= 1
    (shard / "shard.safetensors").write_bytes(data)
    with pytest.raises(ShardError, match="does not have the sha256 that the manifest names"):
        home.served(shards={"law": shard})


def test_a_shard_of_no_tokens_changes_nothing(home: Home):
    served, rows = home.served(shards={"none": home.shard("none", tokens=0)}), prompts(2)
    with served.engine:
        assert answers(served, "base+none", rows) == answers(served, "base", rows)


def test_a_base_in_a_bounded_memory_answers_the_same_and_tells_of_its_experts(home: Home):
    rows = prompts(2, longest=12)  # longer ones go through torch: the same but for the last bits
    plain, small = home.served(), home.served(memory="84KiB")
    with plain.engine, small.engine:
        assert answers(small, "base", rows) == answers(plain, "base", rows)
        told = small.engine.stats().experts
        assert told is not None
        assert 0 < told.held < told.asked
        assert plain.engine.stats().experts is None


def test_the_first_slots_are_the_bases_own(home: Home):
    served = home.served(shards={"law": home.shard("law")})
    served.engine.close()
    plain = home.served()
    plain.engine.close()
    base, wider = plain.engine.decoder.model, served.engine.decoder.model
    for name, tensor in base.state_dict().items():
        assert torch.equal(wider.state_dict()[name][: len(tensor)], tensor), name
