"""`Tokenizer`: any ``tokenizer.json`` with its special tokens, as it lies beside weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers

from moesaic.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_SPECIAL = ("bos", "eos", "pad")


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Build one with `load`, or train one with `moesaic.data.bpe.train_bpe`. Text is ordinary by
    default: a document that happens to contain the name of a special token is encoded as letters.
    """

    source: str = field(repr=False)
    """The content of ``tokenizer.json``; saved as it was read."""
    settings: dict[str, Any] = field(repr=False)
    """The content of ``tokenizer_config.json``."""
    bos_id: int | None = None
    """Token that begins a document."""
    eos_ids: tuple[int, ...] = ()
    """Tokens that end a text; the first is the one that is learned."""
    pad_id: int | None = None
    """Token that fills rows."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The tokenizer of a checkpoint folder, or in a ``tokenizer.json``.

        Special tokens are those of ``tokenizer_config.json``; ends that only
        ``generation_config.json`` or ``config.json`` name are added to them.

        Raises:
            DataError: if the file is missing, is no tokenizer, or a special token is not in it.
        """
        file = Path(path)
        file = file / TOKENIZER_FILE if file.is_dir() else file
        source = _read_source(file)
        settings = _read_settings(file.with_name(SETTINGS_FILE))
        template = file.with_name(TEMPLATE_FILE)
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        vocabulary = tokenizers.Tokenizer.from_str(source).get_vocab()
        special = {name: _special_id(settings, name, vocabulary, file) for name in _SPECIAL}
        for other in ("generation_config.json", "config.json"):
            ids = _read_settings(file.with_name(other))
            for name in _SPECIAL:
                special[name] += _as_ids(ids.get(f"{name}_token_id"))
        return cls(
            source,
            settings,
            bos_id=next(iter(special["bos"]), None),
            eos_ids=tuple(dict.fromkeys(special["eos"])),
            pad_id=next(iter(special["pad"]), None),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a checkpoint folder."""
        folder = Path(folder)
        (folder / TOKENIZER_FILE).write_text(self.source, encoding="utf-8")
        settings = json.dumps(self.settings, indent=2, ensure_ascii=False)
        (folder / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")

    @property
    def eos_id(self) -> int:
        """The token learned at the end of every document.

        Raises:
            DataError: if the tokenizer names none.
        """
        if not self.eos_ids:
            raise DataError(
                f"the tokenizer names no token that ends a text; set eos_token in {SETTINGS_FILE}"
            )
        return self.eos_ids[0]

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id; an embedding needs at least this many rows."""
        return max(self._engine.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        added = self._engine.get_added_tokens_decoder()
        return frozenset(id_ for id_, token in added.items() if token.special)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether every document and prompt begins with the BOS token."""
        if self.bos_id is None:
            return False
        if isinstance(self.settings.get("add_bos_token"), bool):
            return self.settings["add_bos_token"]
        return tokenizers.Tokenizer.from_str(self.source).encode("").ids[:1] == [self.bos_id]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides which ids a text gets."""
        parts = (self.source, self.bos_id, self.eos_ids, self.pad_id, self.adds_bos)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations, if the tokenizer has one."""
        template = self.settings.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    def token_id(self, token: str) -> int:
        """The id of one token, by its name.

        Raises:
            DataError: if the vocabulary lacks it.
        """
        found = self._engine.token_to_id(token)
        if found is None:
            raise DataError(
                f"{token!r} is not in the tokenizer's vocabulary; add it, or do without"
            )
        return found

    def token(self, id_: int) -> str:
        """The name of one token; an id past the vocabulary has an empty one."""
        return self._engine.id_to_token(id_) or ""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text, without BOS or EOS.

        Args:
            text: any text.
            special: whether names of special tokens in the text become those tokens; only for
                text from a chat template, never for documents.

        Raises:
            DataError: if the text has no form in UTF-8.
        """
        engine = self._parsing_engine if special else self._engine
        try:
            return engine.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not any("\ud800" <= letter <= "\udfff" for letter in text):
                raise
            raise DataError(
                "a text has half of a surrogate pair, which is no character; give it in UTF-8"
            ) from None

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """`encode` of many texts at once: several times faster than one by one."""
        engine = self._parsing_engine if special else self._engine
        encodings = engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of the beginning of a document, to be continued by a model."""
        return ([self.bos_id] if self.adds_bos and self.bos_id is not None else []) + self.encode(
            text
        )

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of some ids. Ids past the vocabulary have none."""
        return self._engine.decode(ids, skip_special_tokens=skip_special)

    def decode_batch(self, rows: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
        """The texts of many rows of ids."""
        return self._engine.decode_batch(rows, skip_special_tokens=skip_special)

    @cached_property
    def _engine(self) -> tokenizers.Tokenizer:
        """Reads names of special tokens as ordinary text."""
        engine = _plain_engine(self.source)
        engine.encode_special_tokens = True
        return engine

    @cached_property
    def _parsing_engine(self) -> tokenizers.Tokenizer:
        """Reads names of special tokens as those tokens."""
        return _plain_engine(self.source)


def _plain_engine(source: str) -> tokenizers.Tokenizer:
    """An engine that adds, cuts and pads nothing."""
    engine = tokenizers.Tokenizer.from_str(source)
    engine.post_processor = None
    engine.no_truncation()
    engine.no_padding()
    return engine


def _read_source(file: Path) -> str:
    """The text of a ``tokenizer.json`` that can be used."""
    if not file.is_file():
        raise DataError(f"{file} does not exist; give a folder or file with a {TOKENIZER_FILE}")
    try:
        source = file.read_text(encoding="utf-8")
        tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the engine raises plain Exception
        raise DataError(
            f"{file} is not a tokenizer ({error}); fetch it again, or save it with `tokenizers`"
        ) from None
    return source


def _read_settings(file: Path) -> dict[str, Any]:
    """A JSON object beside the tokenizer; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); fetch it again") from None
    if not isinstance(settings, dict):
        raise DataError(f"{file} holds a {type(settings).__name__}; it should be a JSON object")
    return settings


def _special_id(
    settings: dict[str, Any], name: str, vocabulary: dict[str, int], file: Path
) -> tuple[int, ...]:
    """The id of the token that ``tokenizer_config.json`` names, as a tuple of none or one."""
    token = settings.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return ()
    if token not in vocabulary:
        raise DataError(
            f"{file.with_name(SETTINGS_FILE)}: {name}_token={token!r} is not in {TOKENIZER_FILE}; "
            "add the token there, or name one that it has"
        )
    return (vocabulary[token],)


def _as_ids(value: Any) -> tuple[int, ...]:
    """The ids in a setting that is None, one id, or a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
