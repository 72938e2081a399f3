"""`Document`: one text, pair or conversation, and which side of the held-out split it is on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.config.data import Split
from moesaic.errors import DataError

Message = Mapping[str, Any]
"""One turn of a conversation: `role`, `content`, and what else a chat template reads."""


@dataclass(frozen=True, slots=True)
class Document:
    """What one row or file says. Either `messages`, or `text` after an optional `prompt`."""

    text: str = ""
    """Plain text, or the completion of `prompt`."""
    prompt: str | None = None
    """What the text answers."""
    messages: tuple[Message, ...] | None = None
    """A conversation."""
    where: str = ""
    """File and line, for messages about this document."""

    @property
    def spoken(self) -> str:
        """The text without its form: what a vocabulary is learned from."""
        if self.messages is not None:
            return "\n".join(str(message.get("content") or "") for message in self.messages)
        return f"{self.prompt or ''}{self.text}"

    @property
    def content(self) -> str:
        """Everything the document says, as one string that identifies it."""
        if self.messages is not None:
            return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)
        return self.spoken

    def is_in(self, split: Split, held_out_share: float) -> bool:
        """Whether the document belongs to a split: decided by its content alone."""
        if split == "all":
            return True
        digest = hashlib.blake2b(self.content.encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest) < held_out_share * 2**64
        return held_out == (split == "held_out")


def document_from_row(row: Any, field: str, where: str) -> Document:
    """The document in a row of JSON or Parquet.

    A row with ``messages`` is a conversation, one with ``prompt`` and ``completion`` a pair, any
    other has its text in ``field``.

    Raises:
        DataError: if the row is not of these kinds; ``where`` begins the message.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is {_kind(row)}; it should be a JSON object")
    if row.get("messages") is not None:
        document = Document(messages=_messages(row["messages"], where), where=where)
    elif row.get("prompt") is not None and row.get("completion") is not None:
        prompt, text = _string(row, "prompt", where), _string(row, "completion", where)
        document = Document(text, prompt, where=where)
    else:
        document = Document(_string(row, field, where), where=where)
    try:
        document.content.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text has half of a surrogate pair ({error.reason}); repair the row"
        ) from None
    return document


def _string(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise DataError(
            f"{where}: {field!r} is {_kind(value)}; it should be text, or `field` name another"
        )
    raise DataError(
        f"{where}: there is no {field!r}; set the source's `field` to one of {', '.join(row)}"
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: 'messages' is {_kind(value)}; it should be a list of turns")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f"{where}: a turn in 'messages' has no role; write it as "
                '{"role": "user", "content": "…"}'
            )
    return tuple(value)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value == []:
        return "an empty list"
    names = {type(None): "null", bool: "a truth value", str: "a text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")
