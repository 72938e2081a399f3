"""A tokenizer in the keys of GGUF."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import gguf

from moesaic.checkpoint.gguf_cuts import CUTS
from moesaic.errors import CheckpointError

_NUMBERS = (r"\p{N}", r"\p{N}{1,3}", r"\p{N}+")
_GROUPED = {"deepseek-v3": r"\p{N}{1,3}"}
"""The patterns for numbers where they leave some together."""


class SavedTokenizer(Protocol):
    """What `moesaic.data.tokenizer.Tokenizer` has."""

    @property
    def source(self) -> str:
        """The content of ``tokenizer.json``."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Token that begins a document."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ...

    @property
    def pad_id(self) -> int | None:
        """Token that fills rows."""
        ...

    @cached_property
    def adds_bos(self) -> bool:
        """Whether every prompt begins with the BOS token."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations."""
        ...


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Byte-level BPE as llama.cpp reads it: a name and a type for every row of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre_tokenizer: str


def read_vocabulary(source: str, rows: int, pre_tokenizer: str | None) -> Vocabulary:
    """The vocabulary in a ``tokenizer.json``.

    Args:
        source: its content.
        rows: of the embedding; those past the vocabulary become unused tokens.
        pre_tokenizer: llama.cpp's name for the rules that cut text; None finds out.

    Raises:
        CheckpointError: if it is not byte-level BPE, has more tokens than rows, or llama.cpp's name
            cannot be told.
    """
    told: dict[str, Any] = json.loads(source)
    model, steps = told["model"], _steps(told.get("pre_tokenizer"))
    if model["type"] != "BPE" or not any(step["type"] == "ByteLevel" for step in steps):
        raise CheckpointError(
            f"the tokenizer is {model['type']} and not byte-level BPE, the only kind that can be "
            "exported; leave tokenizer.json out of the folder, and llama.cpp takes token ids"
        )
    added = {token["id"]: token for token in told.get("added_tokens", [])}
    names = {id_: name for name, id_ in model["vocab"].items()}
    names |= {id_: token["content"] for id_, token in added.items()}
    if max(names) >= rows:
        raise CheckpointError(
            f"the tokenizer has an id {max(names)}, the embedding only {rows} rows; put the "
            "tokenizer of this model into the folder"
        )
    types = gguf.TokenType

    def type_of(id_: int) -> int:
        if id_ not in names:
            return types.UNUSED
        if id_ not in added:
            return types.NORMAL
        return types.CONTROL if added[id_]["special"] else types.USER_DEFINED

    return Vocabulary(
        tokens=tuple(names.get(id_, f"[PAD{id_}]") for id_ in range(rows)),
        types=tuple(map(type_of, range(rows))),
        merges=tuple(one if isinstance(one, str) else " ".join(one) for one in model["merges"]),
        pre_tokenizer=pre_tokenizer or _recognised(steps, model["vocab"]),
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rules that cut text, in their order."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] != "Sequence":
        return [pre_tokenizer]
    return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]


def _recognised(steps: list[dict[str, Any]], vocabulary: dict[str, int]) -> str:
    """llama.cpp's name for the rules, if it has one."""
    patterns = [_pattern(step) for step in steps]
    numbers = [one for one in patterns if one in _NUMBERS]
    others = tuple(one for one in patterns if one is not None and one not in _NUMBERS)
    for name, cuts in CUTS.items():
        same_numbers = numbers == [_GROUPED.get(name)]
        if others == cuts and (same_numbers or not any(map(_has_digits, vocabulary))):
            return name
    raise CheckpointError(
        f"llama.cpp has no name for the rules that this tokenizer cuts text by, or none known here "
        f"({', '.join(CUTS)}); give the one of src/llama-vocab.cpp that fits with --pre-tokenizer, "
        "or leave tokenizer.json out of the folder, and llama.cpp takes token ids"
    )


def _pattern(step: dict[str, Any]) -> str | None:
    """The expression whose matches are cut out; None for the step that makes letters of bytes."""
    if step["type"] == "Digits":
        return r"\p{N}" if step["individual_digits"] else r"\p{N}+"
    if step["type"] == "ByteLevel" and not step["use_regex"] and not step["add_prefix_space"]:
        return None
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        pattern: str = step["pattern"].get("Regex", "")
        return pattern.replace("\r", r"\r").replace("\n", r"\n")
    return ""  # which no rule of llama.cpp is


def _has_digits(token: str) -> bool:
    return re.search(r"\d\d", token) is not None


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: SavedTokenizer | None, vocabulary: Vocabulary | None
) -> None:
    """Write a tokenizer, or that there is none."""
    if tokenizer is None or vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    for add, id_ in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id), tokenizer.eos_ids, strict=False
    ):
        add(id_)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
