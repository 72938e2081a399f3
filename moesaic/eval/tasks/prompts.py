"""`Prompts`: what a model reads before it answers: a heading, examples, the question.

An item has a ``prompt``, which ends where the answer begins, and, if examples come before it, their
places in a pool as ``examples``. An item of the pool has a ``prompt`` and an ``answer``.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesaic.errors import DataError
from moesaic.eval.task import Item

HARNESS_SEED = 1234
"""With it lm-evaluation-harness draws examples if nothing else is said."""
BETWEEN_EXAMPLES = "\n\n"


def no_heading(item: Item) -> str:
    """For tasks that begin with their examples."""
    return ""


@dataclass(frozen=True, slots=True)
class Prompts:
    """How the parts of a prompt are put together."""

    pool: Sequence[Item] = ()
    """Where examples are taken from."""
    delimiter: str = " "
    """What stands between the prompt of an example and its answer."""
    heading: Callable[[Item], str] = no_heading
    """What stands before the examples, given the question."""

    def text(self, item: Item) -> str:
        """Everything that a model reads before it answers."""
        examples = [self.pool[place] for place in item.get("examples", ())]
        shown = [
            f"{example['prompt']}{self.delimiter}{example['answer']}{BETWEEN_EXAMPLES}"
            for example in examples
        ]
        return f"{self.heading(item)}{''.join(shown)}{item['prompt']}"


def draw_examples(
    items: Sequence[Item],
    pool: Sequence[Item],
    shots: int,
    seed: int,
    leaves_out_question: bool = False,
) -> list[Item]:
    """The items, each with examples drawn for it.

    With the same seed, pool and items the draws are those of lm-evaluation-harness 0.4, item by
    item. They come from Python's generator and not from torch's, because the harness's do.

    Args:
        items: in the order of the data, from its first on: every draw depends on those before.
        pool: what is drawn from.
        shots: examples for each item.
        seed: of the one generator that serves all items.
        leaves_out_question: draw one more, then leave out the question itself, or else the last.
            The harness does so where nothing says which split examples are from. Items then have
            the digest of their ``row``.

    Raises:
        DataError: if the pool is too small.
    """
    if not shots:
        return list(items)
    _check_pool(pool, shots + leaves_out_question, shots)
    generator = random.Random(seed)
    draw = _draw_others if leaves_out_question else _draw
    return [{**item, "examples": draw(generator, item, pool, shots)} for item in items]


def _draw(generator: random.Random, item: Item, pool: Sequence[Item], shots: int) -> list[int]:
    return generator.sample(range(len(pool)), shots)


def _draw_others(
    generator: random.Random, item: Item, pool: Sequence[Item], shots: int
) -> list[int]:
    drawn = generator.sample(range(len(pool)), shots + 1)
    kept = [place for place in drawn if pool[place]["row"] != item["row"]][:shots]
    if len(kept) == shots:
        return kept
    others = [place for place, example in enumerate(pool) if example["row"] != item["row"]]
    _check_pool(others, shots, shots, " other than the question")
    return generator.sample(others, shots)


def first_examples(
    items: Sequence[Item], pool: Sequence[Item], shots: int, same: str | None = None
) -> list[Item]:
    """The items, each with the first examples of the pool.

    Args:
        items: the questions.
        pool: the examples, in their order.
        shots: examples for each item.
        same: a field in which examples must equal the question; None takes any.

    Raises:
        DataError: if there are too few of them.
    """
    if not shots:
        return list(items)
    places: dict[object, list[int]] = {}
    for place, example in enumerate(pool):
        places.setdefault(example[same] if same else None, []).append(place)
    chosen = []
    for item in items:
        fitting = places.get(item[same] if same else None, [])
        _check_pool(fitting, shots, shots, f" of {same} {item[same]!r}" if same else "")
        chosen.append({**item, "examples": fitting[:shots]})
    return chosen


def _check_pool(pool: Sequence[object], needed: int, shots: int, which: str = "") -> None:
    if len(pool) < needed:
        raise DataError(
            f"{shots} shots need {needed} examples{which}, the data has {len(pool)}; lower --shots"
        )
