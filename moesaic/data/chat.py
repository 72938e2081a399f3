"""`ChatTemplate`: conversations as tokens, and which of them the assistant said.

Templates come with a checkpoint, so they run in Jinja's sandbox and see nothing but plain data.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.documents import Message
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

Span = tuple[int, int]
"""Characters from, up to."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: no text may hold them
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the meaning that transformers gives it.

    It sees ``messages``, ``add_generation_prompt`` and the tokenizer's special tokens as
    ``bos_token`` and so on, and may call ``raise_exception`` and ``strftime_now``. Names of special
    tokens are read as those tokens, in messages too.
    """

    source: str
    """The template."""
    tokenizer: Tokenizer
    """Whose special tokens it writes."""
    now: Callable[[], datetime] = datetime.now
    """The clock of ``strftime_now``."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str | None = None) -> Self:
        """The tokenizer's own template, or one that ships with moesaic.

        Raises:
            DataError: if no name is given and the tokenizer has none.
        """
        source = tokenizer.chat_template if name is None else TEMPLATES[name]
        if source is None:
            names = " or ".join(map(repr, TEMPLATES))
            raise DataError(
                "the tokenizer has no chat template; add chat_template to tokenizer_config.json, "
                f"or set chat_template, in a run file that of data, to {names}"
            )
        return cls(source, tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The conversation as text.

        Raises:
            DataError: if the template fails on these messages.
        """
        return _MARK.sub("", self._marked(messages, add_generation_prompt, tools))

    def encode_prompt(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation up to where the assistant's next turn begins.

        They are what `encode` begins the same conversation with once it has that turn.

        Raises:
            DataError: as `encode` does.
        """
        text, answers = self._text_and_answers(messages, True, tools)
        return [id_ for ids, _ in self._encoded(text, answers) for id_ in ids]

    def encode(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and for each whether it is of an answer.

        Answers are what the template puts between ``{% generation %}`` and ``{% endgeneration %}``.
        In a template without these they are what a turn of the assistant adds to the prompt before
        it, end token included. An answer is encoded by itself, as a model generates it: no token
        holds the end of a prompt and the beginning of an answer.

        Raises:
            DataError: if the template fails, or an answer is not the continuation of its prompt.
        """
        text, answers = self._text_and_answers(messages, False, tools)
        parts = self._encoded(text, answers)
        ids = [id_ for part, _ in parts for id_ in part]
        return ids, [is_answer for part, is_answer in parts for _ in part]

    def _encoded(self, text: str, answers: Sequence[Span]) -> list[tuple[list[int], bool]]:
        """Ids of what is before, in, between and after the answers; whether it is one."""
        borders = [0, *(border for span in answers for border in span), len(text)]
        parts = [text[first:last] for first, last in pairwise(borders)]
        ids = [self.tokenizer.encode(part, special=True) for part in parts]
        return [(part, index % 2 == 1) for index, part in enumerate(ids)]

    def _text_and_answers(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] | None
    ) -> tuple[str, list[Span]]:
        text, spans = _split_marks(self._marked(messages, add_generation_prompt, tools))
        return text, spans if self._has_marks else self._continuations(messages, text, tools)

    def _continuations(
        self, messages: Sequence[Message], text: str, tools: Sequence[Any] | None
    ) -> list[Span]:
        """Where each assistant's turn stands in the text: between two shorter conversations."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[:index], True, tools)
            until = self.render(messages[: index + 1], False, tools)
            if not (text.startswith(until) and until.startswith(prompt)):
                raise DataError(
                    f"the chat template does not continue the prompt with turn {index + 1}, so its "
                    "answer cannot be told apart; mark it with {% generation %} and "
                    "{% endgeneration %} in the template, or set loss_on to 'all'"
                )
            spans.append((len(prompt), len(until)))
        return spans

    def _marked(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] | None
    ) -> str:
        try:
            plain, functions = json.loads(json.dumps([list(messages), tools]))
            return self._template.render(
                messages=plain,
                add_generation_prompt=add_generation_prompt,
                tools=functions,
                documents=None,
                **_special_names(self.tokenizer),
            )
        except Exception as error:  # a template is code from elsewhere and may raise anything
            raise DataError(
                f"the chat template fails on this conversation ({error}); change the messages, or "
                "the template in tokenizer_config.json"
            ) from None

    @cached_property
    def _has_marks(self) -> bool:
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))

    @cached_property
    def _template(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: self.now().strftime(form)
        return environment.from_string(self.source)


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}``: marks what the model said."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return _OPEN + caller() + _CLOSE


def _split_marks(marked: str) -> tuple[str, list[Span]]:
    """The text without marks, and the spans between them."""
    text, spans, start = "", [], 0
    for part in re.split(f"({_MARK.pattern})", marked):
        if part == _OPEN:
            start = len(text)
        elif part == _CLOSE:
            spans.append((start, len(text)))
        else:
            text += part
    return text, spans


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Every special token that the tokenizer's settings name, as templates know them."""
    ids = {"bos_token": tokenizer.bos_id, "pad_token": tokenizer.pad_id}
    ids["eos_token"] = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    names = {name: tokenizer.token(id_) for name, id_ in ids.items() if id_ is not None}
    for name, token in tokenizer.settings.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            names[name] = token
    return names


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
