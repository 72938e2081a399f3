"""`ChatForm` and `CompletionForm`: what a client may ask, and the jobs it becomes."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from moesaic.config.infer import GenerateConfig
from moesaic.config.serve import ServeConfig
from moesaic.config.settings import Settings
from moesaic.data.chat import ChatTemplate
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.job import Job

_NO_EFFECT = frozenset(
    {"user", "store", "metadata", "safety_identifier", "service_tier", "prompt_cache_key"}
)
"""What does not concern the answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "reasoning_effort": (),
}
"""What is not served, and the values that ask for nothing of it."""
_COMPLETION_TOKENS = 16
"""Tokens of a completion unless the request says how many, as clients expect."""


class StreamOptions(Settings):
    """What a stream tells besides text."""

    include_usage: bool = False
    """Whether the last event counts the tokens."""


class TextPart(Settings):
    """A part of what was said."""

    type: Literal["text"]
    text: str
    """Its text."""


class Turn(Settings):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks; a developer counts as the system."""
    content: str | list[TextPart] | None = None
    """What is said."""
    name: str | None = None
    """What the speaker is called, for templates that read it."""

    def message(self) -> dict[str, Any]:
        """As chat templates read it."""
        parts = self.content if isinstance(self.content, list) else None
        said = self.content if parts is None else "".join(part.text for part in parts)
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": said or "", **named}


class Form(Settings):
    """What both kinds of requests may say."""

    model: str
    """The name of the model."""
    max_tokens: PositiveInt | None = None
    """Most tokens of each answer."""
    temperature: Annotated[NonNegativeFloat, Field(le=2)] | None = None
    """See `GenerateConfig`; None is 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """See `GenerateConfig`; None is 1."""
    top_k: PositiveInt | None = None
    """See `GenerateConfig`."""
    n: PositiveInt | None = None
    """Answers to each prompt; None is 1."""
    stop: str | list[str] | None = None
    """Texts before which to stop."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed gives the same answer; None draws one."""
    stream: bool | None = None
    """Whether to answer with events, piece by piece."""
    stream_options: StreamOptions | None = None
    """What the events tell."""
    priority: int = 0
    """Lower ones go first."""
    response_format: dict[str, Any] | None = None
    """The form of the answer, in the API's words."""
    structured_outputs: dict[str, Any] | None = None
    """The same in vLLM's."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The form in a request's JSON object.

        Raises:
            RequestError: if it asks for something that is not served.
            ConfigError: if a field is unknown or wrong.
        """
        kept = {}
        for key, value in data.items():
            if key in _NO_EFFECT or key in _NEUTRAL:
                if key in _NEUTRAL and value is not None and value not in _NEUTRAL[key]:
                    raise RequestError(f"{key}={value!r} is not served; leave {key} out")
                continue
            kept[key] = value
        return cls.parse(kept)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _jobs(
        self, rows: list[list[int]], most: int, top: int | None, limit: int, echoes: bool = False
    ) -> list[Job]:
        """A job per prompt and choice, those of one prompt side by side."""
        n = self.n or 1
        if n * len(rows) > limit:
            raise RequestError(
                f"{len(rows)} prompts with n={n} make {n * len(rows)} answers, more than {limit}; "
                "ask for fewer, or in several requests"
            )
        seed = secrets.randbits(62) if self.seed is None else self.seed % 2**62
        settings = GenerateConfig.parse(
            {
                "max_new_tokens": most,
                "temperature": 1.0 if self.temperature is None else self.temperature,
                "top_p": 1.0 if self.top_p is None else self.top_p,
                "top_k": self.top_k,
                "stop": [self.stop] if isinstance(self.stop, str) else self.stop or (),
            }
        )
        return [
            Job(tuple(row), settings.changed(seed=seed + choice), self.priority, top, echoes)
            for row in rows
            for choice in range(n)
        ]


class ChatForm(Form):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    """The conversation."""
    max_completion_tokens: PositiveInt | None = None
    """Most tokens of each answer: the newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Whether to tell log-probabilities."""
    top_logprobs: NonNegativeInt | None = None
    """Of how many likeliest tokens."""

    def jobs(self, template: ChatTemplate, config: ServeConfig, positions: int) -> list[Job]:
        """What the engine is asked.

        Args:
            template: of the model.
            config: limits.
            positions: how many the model has.
        """
        ids = template.encode_prompt([turn.message() for turn in self.messages])
        most = self.max_completion_tokens or self.max_tokens
        most = most or max(1, min(config.max_new_tokens, positions - len(ids)))
        top = (self.top_logprobs or 0) if self.logprobs else None
        return self._jobs([ids], most, top, config.max_choices)


class CompletionForm(Form):
    """``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    """A text or its ids, or several."""
    echo: bool | None = None
    """Whether the prompt comes back before what follows it."""
    logprobs: NonNegativeInt | None = None
    """Of how many likeliest tokens to tell log-probabilities."""

    def jobs(self, tokenizer: Tokenizer, config: ServeConfig) -> list[Job]:
        """What the engine is asked."""
        rows = [
            tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
            for prompt in self._prompts()
        ]
        most = self.max_tokens or _COMPLETION_TOKENS
        return self._jobs(rows, most, self.logprobs, config.max_choices, bool(self.echo))

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]
