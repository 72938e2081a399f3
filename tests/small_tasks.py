"""Tasks of a few items in the three forms of requests, and an engine that can be stopped."""

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.eval.engine import Engine
from moesaic.eval.progress import Silent
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
from moesaic.eval.task import Item, Judgement, Metric

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def words(n: int, seed: int) -> str:
    """A text of ``n`` words."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


@dataclass(frozen=True)
class Choices:
    """Which of four continuations is the most probable? Its questions are in two parts."""

    items: Sequence[Item]
    name: str = "choices"
    metrics: Sequence[Metric] = (Metric("acc"), Metric("likelihood"))
    description: Mapping[str, Any] = field(default_factory=lambda: {"version": 1, "shots": 0})

    def group(self, item: Item) -> str | None:
        return item["part"]

    def requests(self, item: Item) -> Sequence[Likelihood]:
        return [Likelihood(item["question"], f" {choice}") for choice in item["choices"]]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        log_p = [a.log_probability for a in answers if isinstance(a, LikelihoodAnswer)]
        taken = log_p.index(max(log_p))
        values = {"acc": float(taken == item["gold"]), "likelihood": log_p[item["gold"]]}
        return Judgement(values, item["choices"][taken], item["choices"][item["gold"]])


def choices(n: int, seed: int = 0) -> Choices:
    """``n`` questions."""
    draw = random.Random(seed)
    items = [
        {
            "question": words(20 + place % 7, seed=1000 * seed + place),
            "choices": [
                words(1 + place % 3 * part, seed=draw.randrange(10**6)) for part in range(1, 5)
            ],
            "gold": draw.randrange(4),
            "part": "even" if place % 2 == 0 else "odd",
        }
        for place in range(n)
    ]
    return Choices(items)


@dataclass(frozen=True)
class Texts:
    """How well is a text predicted?"""

    items: Sequence[Item]
    name: str = "texts"
    metrics: Sequence[Metric] = (
        Metric("bits_per_byte", is_higher_better=False, aggregate="bits_per_byte"),
        Metric("word_perplexity", is_higher_better=False, aggregate="weighted_perplexity"),
    )
    description: Mapping[str, Any] = field(default_factory=dict)

    def group(self, item: Item) -> str | None:
        return None

    def requests(self, item: Item) -> Sequence[Rolling]:
        return [Rolling(item["text"])]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        [answer] = answers
        assert isinstance(answer, RollingAnswer)
        text = item["text"]
        units = {"bits_per_byte": len(text.encode()), "word_perplexity": len(text.split())}
        values = {name: (answer.log_probability, count) for name, count in units.items()}
        return Judgement(values, f"{answer.tokens} tokens", text)


@dataclass(frozen=True)
class Writing:
    """Does an answer hold a word?"""

    items: Sequence[Item]
    name: str = "writing"
    metrics: Sequence[Metric] = (Metric("exact_match"),)
    description: Mapping[str, Any] = field(default_factory=dict)

    def group(self, item: Item) -> str | None:
        return None

    def requests(self, item: Item) -> Sequence[Generation]:
        return [Generation(item["prompt"], (".",), max_new_tokens=6)]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        [answer] = answers
        assert isinstance(answer, GenerationAnswer)
        return Judgement({"exact_match": float("e" in answer.text)}, answer.text, "e")


def all_tasks(n: int = 12) -> list[Choices | Texts | Writing]:
    """One of each."""
    texts = [{"text": words(10 + 12 * place, seed=place)} for place in range(n)]
    prompts = [{"prompt": words(3 + place % 5, seed=place)} for place in range(n)]
    return [choices(n), Texts(texts), Writing(prompts)]


class Counted(Engine):
    """An engine that counts the requests it answers, and stops after some."""

    asked = 0
    stop_after: int | None = None

    def answer(
        self, requests: Sequence[Request], known: Collection[int] = ()
    ) -> Iterator[tuple[int, Answer]]:
        for place, answer in super().answer(requests, known):
            if self.asked == self.stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            yield place, answer


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def files(folder: Path) -> dict[str, bytes]:
    """The sample files of an evaluation."""
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())}


def read(folder: Path) -> dict[str, Any]:
    """The results of an evaluation."""
    return json.loads((folder / "results.json").read_text())
