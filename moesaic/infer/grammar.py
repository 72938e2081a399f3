"""`Grammars`: what a text has to be (JSON, a schema, an expression, a grammar), and which tokens
may then follow.

Letters: B sequences, V vocabulary.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.trial import limits, try_grammar, why

if TYPE_CHECKING:
    from llguidance import LLMatcher

Kind = Literal["schema", "regex", "choice", "grammar"]
MOST_CHARACTERS = 100_000
"""Length of a schema, an expression or a grammar that is read."""
_MOST_KEPT = 64
"""Grammars that are kept for the next request that asks for the same."""
_SPACES = r"[\x20\x0A\x0D\x09]{1,20}"
"""What may stand between two parts of JSON: enough to indent, not endless."""


class Course:
    """Where one text is in its grammar."""

    def __init__(self, matcher: "LLMatcher", n_tokens: int) -> None:
        self._matcher, self._n_tokens = matcher, n_tokens

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing could follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> Tensor:
        """Which tokens may follow, bool [V]; one that ends texts only where the text is whole.

        Raises:
            RequestError: if none may, or finding them takes too long.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(bool)
        if self._matcher.is_error():
            raise RequestError(f"the grammar cannot be followed ({why(self._matcher)})")
        if not allowed_V.any():
            raise RequestError(
                "no token of the model's vocabulary goes on as the grammar asks; make it looser"
            )
        return torch.from_numpy(allowed_V)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text has to be; made by `Grammars`, for any number of texts at once."""

    start: "LLMatcher"
    n_tokens: int
    """Size of the vocabulary."""

    def begin(self) -> Course:
        """A text of which nothing is written yet."""
        return Course(self.start.deep_copy(), self.n_tokens)


class Grammars:
    """Makes grammars for one model and its tokenizer.

    Any thread may ask. A grammar that takes too long to compile, or is too large, is refused; one
    that was asked for lately is there at once.
    """

    def __init__(
        self,
        model: ModelConfig,
        tokenizer: Tokenizer,
        check: Callable[[str], None] = try_grammar,
    ) -> None:
        """Read the vocabulary, once.

        Args:
            model: what the texts are drawn from.
            tokenizer: its tokenizer.
            check: refuses a grammar that takes too long, before it is compiled here.

        Raises:
            RequestError: if the library is missing, or the tokenizer has other parts than bytes.
        """
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ModuleNotFoundError:
            raise RequestError(
                "structured output needs llguidance; install it with: pip install 'moesaic[serve]'"
            ) from None
        words = _Words.of(tokenizer, model.vocab_size)
        ends = sorted(each for each in {*model.eos_token_ids, *tokenizer.eos_ids})
        self._tokens = LLTokenizer(TokenizerWrapper(words), eos_token=ends or None)
        self._limits = limits()
        self._n_tokens, self._check = model.vocab_size, check
        self._made: dict[tuple[Kind, str], Grammar] = {}
        self._lock = Lock()

    def of_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that a schema describes; the properties of an object come in the schema's order.

        Raises:
            RequestError: if it is too large, wrong, or uses what cannot be enforced.
        """
        try:
            return self._get("schema", json.dumps(schema))
        except RecursionError:
            raise RequestError("the schema is nested too deeply; flatten it") from None

    def of_regex(self, pattern: str) -> Grammar:
        """Texts that a regular expression matches as a whole.

        Raises:
            RequestError: if it is too large, wrong, or looks around.
        """
        return self._get("regex", pattern)

    def of_choice(self, texts: Sequence[str]) -> Grammar:
        """One of some texts.

        Raises:
            RequestError: if there are none, or they are too large.
        """
        if not texts:
            raise RequestError("choice=[] leaves nothing to choose; name the texts")
        return self._get("choice", json.dumps(list(texts)))

    def of_grammar(self, text: str) -> Grammar:
        """Texts of a context-free grammar, in the form of Lark or of llama.cpp (GBNF).

        Raises:
            RequestError: if it is too large or wrong.
        """
        return self._get("grammar", text)

    def _get(self, kind: Kind, text: str) -> Grammar:
        """A grammar, compiled unless it was before."""
        if len(text) > MOST_CHARACTERS:
            raise RequestError(
                f"the {kind} has {len(text)} characters, more than {MOST_CHARACTERS}; shorten it"
            )
        with self._lock:
            found = self._made.pop((kind, text), None)
        try:
            made = found or self._compile(_translate(kind, text))
        except RequestError as error:
            raise RequestError(
                f"the {kind} cannot be enforced: {error}; correct or simplify it"
            ) from None
        with self._lock:
            self._made[kind, text] = made
            while len(self._made) > _MOST_KEPT:
                del self._made[next(iter(self._made))]
        return made

    def _compile(self, made: str) -> Grammar:
        from llguidance import LLMatcher

        self._check(made)
        matcher = LLMatcher(self._tokens, made, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(why(matcher))
        return Grammar(matcher, self._n_tokens)


def _translate(kind: Kind, text: str) -> str:
    """A grammar in the library's own form.

    Raises:
        RequestError: if it cannot be translated.
    """
    from llguidance import LLMatcher, grammar_from

    try:
        if kind == "schema":
            own = "x-guidance" in json.loads(text)  # where a schema says what may stand there
            spaces = None if own else {"whitespace_pattern": _SPACES}
            return LLMatcher.grammar_from_json_schema(text, cast(Any, spaces))
        return grammar_from(kind, text)
    except ValueError as error:
        raise RequestError(str(error)) from None


def forbid(
    logits_BV: Tensor, courses: Sequence[Course | None]
) -> tuple[Tensor, dict[int, RequestError]]:
    """Logits where tokens that may not follow have the lowest number, so that they are never drawn.

    Args:
        logits_BV: of the model; not changed.
        courses: of each sequence; None where every token may follow.

    Returns:
        The logits, and for rows in which nothing may follow, why.
    """
    if not any(courses):
        return logits_BV, {}
    failed: dict[int, RequestError] = {}
    kept_BV = torch.ones(logits_BV.shape, dtype=torch.bool)
    for row, course in enumerate(courses):
        try:
            if course is not None:
                kept_BV[row] = course.allowed()
        except RequestError as error:
            failed[row] = error
    lowest = torch.finfo(logits_BV.dtype).min
    return logits_BV.masked_fill(~kept_BV.to(logits_BV.device), lowest), failed


@dataclass(frozen=True)
class _Words:
    """A vocabulary as llguidance reads it."""

    tokens: list[bytes]
    """What each token adds to a text; nothing for those that stand for no text."""
    encode: Callable[[str], list[int]]
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    special_token_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, n_tokens: int) -> "_Words":
        """Of a tokenizer whose tokens are bytes.

        Raises:
            RequestError: if they are not.
        """
        source = json.loads(tokenizer.source)
        if "ByteLevel" not in _decoders(source.get("decoder")):
            raise RequestError(
                "structured output needs a byte-level tokenizer, and that of the model is not one"
            )
        byte_of = _byte_of()
        tokens = [b""] * max(n_tokens, tokenizer.vocab_size)
        for name, id_ in source["model"]["vocab"].items():
            if all(letter in byte_of for letter in name):
                tokens[id_] = bytes(byte_of[letter] for letter in name)
        for token in source["added_tokens"]:
            name = token["content"]
            is_name = token["special"] or (name.startswith("<") and name.endswith(">"))
            tokens[token["id"]] = b"" if is_name else name.encode()
        return cls(tokens, tokenizer.encode)

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)


def _decoders(decoder: dict[str, Any] | None) -> Iterator[str]:
    """Kinds of the parts of a tokenizer's decoder."""
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _decoders(part)


def _byte_of() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones for
    themselves, the others, in their order, for letters from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), section 2.2, in the form of the published code.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {
        **{chr(byte): byte for byte in plain},
        **{chr(256 + i): b for i, b in enumerate(others)},
    }
