"""The tokenizer in a GGUF file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from models import random_model

from moesaic.checkpoint.gguf import write_gguf
from moesaic.checkpoint.gguf_cuts import CUTS
from moesaic.checkpoint.gguf_tokens import read_vocabulary
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import CheckpointError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["to be or not to be, 1984 times. " * 20], 300)


def changed(tokenizer: Tokenizer, **parts: Any) -> str:
    """A ``tokenizer.json`` with other parts."""
    return json.dumps({**json.loads(tokenizer.source), **parts})


def cut(*patterns: str, last: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pre-tokenizer of these patterns, and another step, before letters are made of bytes."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in patterns
    ]
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, *([last] if last else []), letters]}


def test_the_file_has_all_that_llama_cpp_needs(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], tokenizer: Tokenizer
) -> None:
    template = TEMPLATES["deepseek-v3"]
    config = tiny_config("v1", vocab_size=303, eos_token_id=(1, 7))
    save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
    tokenizer.settings["chat_template"] = template
    tokenizer.save(tmp_path / "model")
    kept = Tokenizer.load(tmp_path / "model")
    write_gguf(Reader(tmp_path / "model"), tmp_path / "m", "f32", kept, None, lambda n: None)
    fields = gguf.GGUFReader(tmp_path / "m").fields
    told = {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }
    tokens, types = told.pop("ggml.tokens"), told.pop("ggml.token_type")
    merges = told.pop("ggml.merges")
    assert told == {
        "ggml.model": "gpt2",
        "ggml.pre": "deepseek-v3",
        "ggml.bos_token_id": kept.bos_id,
        "ggml.eos_token_id": kept.eos_id,
        "ggml.eot_token_id": 7,  # which config.json names besides
        "ggml.padding_token_id": kept.pad_id,
        "ggml.add_bos_token": True,
        "ggml.add_eos_token": False,
        "chat_template": template,
    }
    assert len(tokens) == len(types) == 303
    known = kept.vocab_size
    assert tokens[:known] == [kept.token(id_) for id_ in range(known)]
    assert tokens[known:] == [f"[PAD{id_}]" for id_ in range(known, 303)]
    assert {id_ for id_, one in enumerate(types) if one == gguf.TokenType.CONTROL} == set(
        kept.special_ids
    )
    assert set(types[known:]) == {gguf.TokenType.UNUSED}
    assert [tuple(one.split(" ")) for one in merges] == [
        tuple(one) for one in json.loads(kept.source)["model"]["merges"]
    ]


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("numbers", [r"\p{N}", r"\p{N}{1,3}"])
def test_the_rules_of_deepseeks_tokenizers_are_recognised(
    tokenizer: Tokenizer, name: str, numbers: str
) -> None:
    for rules in (cut(numbers, *CUTS[name]), cut(*CUTS[name], last=_digits())):
        found = read_vocabulary(changed(tokenizer, pre_tokenizer=rules), 300, None)
        assert found.pre_tokenizer == name


def _digits() -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": True}


def test_numbers_matter_where_the_vocabulary_has_tokens_of_several_digits(
    tokenizer: Tokenizer,
) -> None:
    model = json.loads(tokenizer.source)["model"]
    model = {**model, "vocab": {**model["vocab"], "19": 300}, "merges": [["1", "9"]]}
    same = cut(r"\p{N}{1,3}", *CUTS["deepseek-v3"])
    found = read_vocabulary(changed(tokenizer, model=model, pre_tokenizer=same), 301, None)
    assert found.pre_tokenizer == "deepseek-v3"
    with pytest.raises(CheckpointError, match="no name for the rules that this tokenizer cuts"):
        read_vocabulary(changed(tokenizer, model=model), 301, None)


@pytest.mark.parametrize(
    "rules",
    [
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        cut(r"\p{N}", r"\w+"),
        cut(*CUTS["deepseek-v3"], last={"type": "Whitespace"}),
    ],
)
def test_other_rules_need_their_name(tokenizer: Tokenizer, rules: dict[str, Any]) -> None:
    source = changed(tokenizer, pre_tokenizer=rules)
    with pytest.raises(CheckpointError, match="that fits with --pre-tokenizer"):
        read_vocabulary(source, 300, None)
    assert read_vocabulary(source, 300, "gpt-2").pre_tokenizer == "gpt-2"


def test_a_vocabulary_past_the_embedding_is_refused(tokenizer: Tokenizer) -> None:
    last = tokenizer.vocab_size - 1
    with pytest.raises(CheckpointError, match=f"has an id {last}, the embedding only 260 rows"):
        read_vocabulary(tokenizer.source, 260, None)


def test_tokens_that_are_not_special_are_read_in_any_text(tokenizer: Tokenizer) -> None:
    added = [*json.loads(tokenizer.source)["added_tokens"], {"id": 290, "content": "ÿ y"}]
    added[-1]["special"] = False
    found = read_vocabulary(changed(tokenizer, added_tokens=added), 300, None)
    assert (found.tokens[290], found.types[290]) == ("ÿ y", gguf.TokenType.USER_DEFINED)


def test_only_byte_level_bpe_is_exported(tokenizer: Tokenizer) -> None:
    model = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
    with pytest.raises(CheckpointError, match="is Unigram and not byte-level BPE"):
        read_vocabulary(changed(tokenizer, model=model), 300, None)
