"""`MoesaicLM`: our models inside lm-evaluation-harness, for the tasks that moesaic does not have.

From a terminal, with every option of ``lm_eval``::

    python -m moesaic.eval.harness --model moesaic --model_args folder=DIR --tasks hellaswag

In Python, importing this module makes ``lm_eval.simple_evaluate(model="moesaic", …)`` known, and
an instance can be given as the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from moesaic.config.eval import EvalConfig
from moesaic.data.chat import ChatTemplate
from moesaic.errors import ConfigError, RequestError
from moesaic.eval.engine import Engine
from moesaic.eval.requests import (
    Answer,
    Generation,
    GenerationAnswer,
    Likelihood,
    LikelihoodAnswer,
    Request,
    Rolling,
    RollingAnswer,
)
from moesaic.eval.tasks.generation import MAX_NEW_TOKENS

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise ImportError(
        f"lm-evaluation-harness is not installed ({error}); run: pip install 'moesaic[eval]'"
    ) from None

_UNDERSTOOD = frozenset({"until", "max_gen_toks", "do_sample", "temperature"})
_OF_DRAWING = frozenset({"top_p", "top_k", "min_p"})
"""What means nothing where the most probable token is taken."""

_OF_THE_HARNESS = {
    "shots": "--num_fewshot",
    "limit": "--limit",
    "chat": "--apply_chat_template",
    "allow_code": "--confirm_run_unsafe_code",
}
"""Settings of our own evaluation, and what stands for them here."""


@register_model("moesaic")
class MoesaicLM(LM):
    """A model that the harness asks, and the engine answers.

    Args:
        engine: answers. Batches are filled by tokens, ``batch_tokens`` of its settings; the
            harness's ``batch_size`` is not read.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """The model of ``folder=DIR,dtype=bfloat16``; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """The model of a checkpoint folder.

        Args:
            arg_dict: ``folder``, and settings of `EvalConfig`.
            additional_config: the harness's own options, of which ``device`` is read.

        Raises:
            ConfigError: if there is no folder, or a setting is wrong.
            CheckpointError: if the folder is incomplete, damaged, or does not fit its config.json.
            DataError: if it has no tokenizer.
        """
        settings = dict(arg_dict)
        if "folder" not in settings:
            raise ConfigError("model_args names no folder; give folder=DIR, a checkpoint's folder")
        for name in settings.keys() & _OF_THE_HARNESS.keys():
            raise ConfigError(
                f"model_args: {name} is not the model's; give {_OF_THE_HARNESS[name]}"
            )
        folder = Path(str(settings.pop("folder")))
        device = (additional_config or {}).get("device")
        if device is not None:
            settings.setdefault("device", device)
        return cls(Engine.load(folder, EvalConfig.parse(settings, "model_args")))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the most probable one."""
        asked = [Likelihood(*request.args) for request in requests]
        return [
            (answer.log_probability, answer.is_greedy)
            for answer in self._answers("loglikelihood", requests, asked)
            if isinstance(answer, LikelihoodAnswer)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each text."""
        asked = [Rolling(*request.args) for request in requests]
        return [
            answer.log_probability
            for answer in self._answers("loglikelihood_rolling", requests, asked)
            if isinstance(answer, RollingAnswer)
        ]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each prompt.

        Raises:
            RequestError: if a task asks for a way of drawing that the engine does not have.
        """
        asked = [_generation(*request.args) for request in requests]
        return [
            answer.text
            for answer in self._answers("generate_until", requests, asked)
            if isinstance(answer, GenerationAnswer)
        ]

    @property
    def tokenizer_name(self) -> str:
        """What tells the harness's caches of prompts apart."""
        return self.engine.tokenizer.digest

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, for the harness's record."""
        return self.engine.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation up to where the model writes: its next turn, or on in its last one.

        Raises:
            DataError: if the tokenizer has no template.
        """
        template = ChatTemplate.of(self.engine.tokenizer)
        if add_generation_prompt:
            return template.render(chat_history, add_generation_prompt=True)
        *before, begun = chat_history
        return template.render(before, add_generation_prompt=True) + begun["content"]

    def _answers(
        self, kind: str, requests: Sequence[Instance], asked: Sequence[Request]
    ) -> list[Answer]:
        """In the order of the requests; each is in the harness's cache as soon as it is there."""
        answers: dict[int, Answer] = {}
        for place, answer in self.engine.answer(asked):
            answers[place] = answer
            self.cache_hook.add_partial(kind, requests[place].args, _plain(answer))
        return [answers[place] for place in range(len(asked))]


def _plain(answer: Answer) -> Any:
    """An answer as the harness knows it."""
    if isinstance(answer, LikelihoodAnswer):
        return answer.log_probability, answer.is_greedy
    return answer.text if isinstance(answer, GenerationAnswer) else answer.log_probability


def _generation(prompt: str, settings: Mapping[str, Any]) -> Generation:
    """The request that a task's ``generation_kwargs`` mean."""
    given: dict[str, Any] = {**normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)}
    temperature = float(given.get("temperature") or 0.0)
    unknown = given.keys() - _UNDERSTOOD - (frozenset() if temperature else _OF_DRAWING)
    if unknown:
        name = min(unknown)
        raise RequestError(
            f"generation_kwargs: {name}={given[name]!r} is not a way in which this engine writes; "
            "set it to nothing in the task, or take another task"
        )
    return Generation(prompt, tuple(given["until"]), given["max_gen_toks"], temperature)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
