"""Shards beside codes and in a bounded memory, and what else is asked of shards and of codes."""

import json
import re
from typing import Any

import openai
import pytest
from jobs import prompts
from served import client_of, running
from shards import OTHERS, Home, MakeHome, answers, answers_of, ask, told

from moesaic.errors import ConfigError
from moesaic.infer.held import HeldExperts, HeldLinear, cache_of


@pytest.mark.parametrize(
    ("family", "dtype", "form"),
    [("v3", "bfloat16", "int4"), ("v2", "float8_e4m3fn", "int8")],
)
def test_a_shard_beside_integers_answers_as_the_merged_checkpoint_made_integers(
    make_home: MakeHome, family: str, dtype: str, form: str
):
    home, rows = make_home(family, dtype), prompts(2, longest=20)
    shard = home.shard("law", shared_experts=True, modules=("router", "attention"))
    served = home.served(shards={"law": shard}, form=form)
    with served.engine:
        found = answers(served, "base+law", rows)
        plain = answers(served, "base", rows)
    assert found == answers_of(home, home.merged(shard), rows, form=form)
    assert plain == answers_of(home, home.base, rows, form=form)
    assert found != plain


@pytest.mark.parametrize("form", ["weights", "int4"])
def test_codes_of_the_base_are_held_once(make_home: MakeHome, form: str):
    home = make_home("v2", "float8_e4m3fn")
    shard = home.shard("law", shared_experts=True)
    served = home.served(shards={"law": shard}, form=form)
    served.engine.close()
    loaded = served.shard_of("base+law")
    assert loaded is not None
    base, variant = served.engine.decoder.model, loaded.variant.decoder.model
    for layer in (1, 2):
        own, other = (model.moe_layers()[layer].experts for model in (base, variant))
        assert isinstance(own, HeldExperts)
        assert isinstance(other, HeldExperts)
        assert own.rows_in is other.rows_in
        assert own.rows_in.kind == ("float8" if form == "weights" else form)
        assert len(own.rows_out.values) == (base.config.experts + 3) * base.config.hidden_size
    linears = {
        name: (module.rows, variant.get_submodule(name).rows)
        for name, module in base.named_modules()
        if isinstance(module, HeldLinear)
    }
    changed = {name for name, (own, other) in linears.items() if own is not other}
    assert changed == {name for name in linears if ".shared_experts." in name}


@pytest.mark.parametrize(
    ("dtype", "form", "memory"),
    [
        ("bfloat16", "weights", "96KiB"),
        ("float8_e4m3fn", "weights", "62KiB"),
        pytest.param("bfloat16", "int8", "108KiB", marks=pytest.mark.slow),
    ],
)
def test_shards_in_a_bounded_memory_answer_as_the_merged_checkpoints(
    make_home: MakeHome, dtype: str, form: str, memory: str
):
    home, rows = make_home("v2", dtype), prompts(3, longest=12)
    shards = {
        "law": home.shard("law", shared_experts=True),
        "maths": home.shard("maths", OTHERS, seed=1),
    }
    served = home.served(shards=shards, form=form, memory=memory)
    with served.engine as engine:
        asked = [(name, row, ask(served, name, row)) for row in rows for name in served.names]
        found = {(name, tuple(row)): told(list(stream)) for name, row, stream in asked}
        experts = engine.stats().experts
    assert experts is not None
    assert 0 < experts.held < experts.asked
    folders = {name: home.merged(shard) for name, shard in shards.items()}
    for name, folder in {"base": home.base, **folders}.items():
        model = name if name == "base" else f"base+{name}"
        expected = answers_of(home, folder, rows, form=form)
        assert [found[model, tuple(row)] for row in rows] == expected, name


def test_the_room_of_shards_is_part_of_a_bounded_memory(home: Home):
    shard = home.shard("law")
    served = home.served(shards={"law": shard}, memory="84KiB")
    served.engine.close()
    alone = home.served(memory="84KiB")
    alone.engine.close()
    n_slots = {}
    for name, each in (("beside", served), ("alone", alone)):
        cache = cache_of(each.engine.decoder.model)
        assert cache is not None
        n_slots[name] = cache.n_slots
    assert n_slots["alone"] - n_slots["beside"] == 6
    with pytest.raises(ConfigError, match=r"needs takes .*, 306 experts of shards .*, and the"):
        home.served(shards={"law": shard}, spare_experts=150, memory="84KiB")


WORDS = ["law", "maths", "none"]
SCHEMA: dict[str, object] = {"enum": WORDS}


def embedded(client: openai.OpenAI, model: str) -> list[list[float]]:
    found = client.embeddings.create(
        model=model, input=["To be", "First Citizen: we are"], encoding_format="float"
    )
    return [each.embedding for each in found.data]


def structured(client: openai.OpenAI, model: str) -> tuple[str, str]:
    """An answer by a schema, and one by an expression."""
    chat = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How many?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        temperature=0,
    )
    plain = client.completions.create(
        model=model,
        prompt="In",
        extra_body={"structured_outputs": {"regex": "[a-f]{6}(19|20)[0-9]{2}"}},
        temperature=0,
    )
    assert chat.choices[0].message.content is not None
    return chat.choices[0].message.content, plain.choices[0].text


@pytest.mark.parametrize("form", ["weights", "int4", pytest.param("int8", marks=pytest.mark.slow)])
def test_embeddings_and_forms_of_a_shard_are_those_of_the_merged_checkpoint(home: Home, form: str):
    shard = home.shard("law", shared_experts=True)
    seen: dict[str, Any] = {}
    for folder, shards in ((None, {"law": shard}), (home.merged(shard), {})):
        served = home.served(folder, shards=shards, form=form)
        with running(served) as server, client_of(server) as client:
            seen |= {
                name: (embedded(client, name), structured(client, name)) for name in served.names
            }
    assert seen["base+law"] == seen["merged-law"]
    assert all(seen["base+law"][part] != seen["base"][part] for part in (0, 1))
    for _, (chat, text) in seen.values():
        assert json.loads(chat) in WORDS
        assert re.fullmatch("[a-f]{6}(19|20)[0-9]{2}", text)


def test_embeddings_of_integers_are_near_those_of_the_floats_they_were_made_of(home: Home):
    rows: dict[str, list[list[float]]] = {}
    for form in ("weights", "int8", "int4"):
        with running(home.served(form=form)) as server, client_of(server) as client:
            rows[form] = embedded(client, "base")
    for form, least in (("int8", 0.999), ("int4", 0.9)):
        for exact, found in zip(rows["weights"], rows[form], strict=True):
            assert least < sum(a * b for a, b in zip(exact, found, strict=True)) < 1.0 - 1e-9
