"""What clients of the OpenAI API read: whole answers, and pieces of one."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.job import Job, Piece, Stream

_REASONS = {"eos": "stop", "stop": "stop", "complete": "stop", "length": "length"}


@dataclass(slots=True)
class Answer:
    """The frame of all that is told about one request."""

    model: str
    tokenizer: Tokenizer
    is_chat: bool
    has_logprobs: bool
    """Whether log-probabilities were asked for."""
    created: int = field(default_factory=lambda: int(time()))
    id: str = ""
    _offsets: dict[int, int] = field(default_factory=dict)
    """Characters told so far, of each choice."""

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        self.id = f"{prefix}-{secrets.token_hex(12)}"

    def whole(self, choices: Sequence[Sequence[Piece]], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer with all its choices."""
        told = [self._choice(index, pieces) for index, pieces in enumerate(choices)]
        return {**self._frame(is_piece=False), "choices": told, "usage": usage}

    def opening(self, n: int) -> list[dict[str, Any]]:
        """What a stream begins with: who speaks."""
        if not self.is_chat:
            return []
        start = {"role": "assistant", "content": ""}
        return [self._event(index, {"delta": start}, None, None) for index in range(n)]

    def event(self, index: int, piece: Piece) -> dict[str, Any]:
        """One piece of a choice."""
        said = {"delta": {"content": piece.text}} if self.is_chat else {"text": piece.text}
        return self._event(index, said, piece, self._logprobs(index, [piece]))

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """What a stream ends with, where tokens are counted."""
        return {**self._frame(is_piece=True), "choices": [], "usage": usage}

    def _frame(self, is_piece: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.is_chat else "text_completion"
        kind += ".chunk" if self.is_chat and is_piece else ""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(
        self, index: int, said: dict[str, Any], piece: Piece | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        reason = _REASONS[piece.ending] if piece is not None and piece.ending else None
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
        return {**self._frame(is_piece=True), "choices": [choice]}

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text, ending = "".join(piece.text for piece in pieces), pieces[-1].ending
        message = {"role": "assistant", "content": text, "refusal": None}
        said = {"message": message} if self.is_chat else {"text": text}
        reason = _REASONS[ending] if ending else None
        logprobs = self._logprobs(index, pieces)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return self._of_chat(pieces) if self.is_chat else self._of_completion(index, pieces)

    def _of_chat(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        told = []
        for piece in pieces:
            top = [self._token(*each) for each in piece.top_logprobs]
            told.append({**self._token(piece.token, piece.logprob), "top_logprobs": top})
        return {"content": told, "refusal": None}

    def _of_completion(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        texts = [self._text(piece.token) for piece in pieces]
        offsets = []
        for piece in pieces:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(piece.text)
        tops = [
            None if piece.logprob is None else {self._text(i): p for i, p in piece.top_logprobs}
            for piece in pieces
        ]
        return {
            "tokens": texts,
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _token(self, id_: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(id_)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, id_: int) -> str:
        return self.tokenizer.decode([id_], skip_special=False)


def usage_of(jobs: Sequence[Job], streams: Sequence[Stream], n: int, drawn: int) -> dict[str, Any]:
    """The tokens of a request; a prompt counts once, however many choices it has."""
    read = sum(len(job.prompt_ids) for job in jobs[::n])
    found = sum(stream.cached_tokens for stream in streams[::n])
    return {
        "prompt_tokens": read,
        "completion_tokens": drawn,
        "total_tokens": read + drawn,
        "prompt_tokens_details": {"cached_tokens": found},
    }
