"""Examples before a question: which they are, and how they are put together."""

import random
from collections.abc import Iterable, Sequence

import pytest

from moesaic.errors import DataError
from moesaic.eval.task import Item
from moesaic.eval.tasks.prompts import HARNESS_SEED, Prompts, draw_examples, first_examples

POOL: list[Item] = [{"prompt": f"Q{n}", "answer": f"A{n}", "kind": "ab"[n % 2]} for n in range(20)]
ITEMS: list[Item] = [{"prompt": f"I{n}", "kind": "ab"[n % 2]} for n in range(4)]


def test_a_prompt_is_heading_examples_and_question():
    prompts = Prompts(POOL, delimiter=" -> ", heading=lambda item: f"About {item['kind']}:\n\n")
    item = {**ITEMS[1], "examples": [3, 0]}
    assert prompts.text(item) == "About b:\n\nQ3 -> A3\n\nQ0 -> A0\n\nI1"


def test_without_examples_a_prompt_is_the_question():
    assert Prompts().text(ITEMS[0]) == "I0"
    assert draw_examples(ITEMS, POOL, 0, seed=1) == first_examples(ITEMS, POOL, 0) == ITEMS


def test_every_item_draws_examples_of_its_own():
    drawn = [tuple(item["examples"]) for item in draw_examples(ITEMS, POOL, 5, HARNESS_SEED)]
    assert len(set(drawn)) == len(ITEMS)
    assert all(len(set(places)) == 5 for places in drawn)


def test_one_generator_draws_for_all_items_in_order():
    generator = random.Random(7)
    assert [item["examples"] for item in draw_examples(ITEMS, POOL, 3, seed=7)] == [
        generator.sample(range(20), 3) for _ in ITEMS
    ]


def test_fewer_items_draw_the_same():
    assert draw_examples(ITEMS[:2], POOL, 3, seed=7) == draw_examples(ITEMS, POOL, 3, seed=7)[:2]


def test_another_seed_draws_others():
    assert draw_examples(ITEMS, POOL, 3, seed=7) != draw_examples(ITEMS, POOL, 3, seed=8)


def others(items: Sequence[Item], pool: Sequence[Item], shots: int) -> list[list[int]]:
    drawn = draw_examples(items, pool, shots, seed=7, leaves_out_question=True)
    return [item["examples"] for item in drawn]


def with_rows(items: Sequence[Item], rows: Iterable[object]) -> list[Item]:
    return [{**item, "row": row} for item, row in zip(items, rows, strict=False)]


def test_the_question_itself_is_left_out():
    places = [item["examples"] for item in draw_examples(ITEMS, POOL, 4, seed=7)]
    items = with_rows(ITEMS, [place[1] for place in places])
    assert others(items, with_rows(POOL, range(20)), 3) == [[a, c, d] for a, _, c, d in places]


def test_where_it_was_not_drawn_the_last_is_left_out():
    places = [item["examples"] for item in draw_examples(ITEMS, POOL, 4, seed=7)]
    items = with_rows(ITEMS, "abcd")
    assert others(items, with_rows(POOL, range(20)), 3) == [place[:3] for place in places]


def test_a_question_that_stands_twice_is_left_out_twice():
    pool = with_rows(POOL[:5], [0, 1, 2, 3, 3])
    [places] = others(with_rows(ITEMS[:1], [3]), pool, 3)
    assert set(places) == {0, 1, 2}
    with pytest.raises(DataError, match="4 examples other than the question, the data has 3"):
        others(with_rows(ITEMS[:1], [3]), pool, 4)


def test_first_examples_can_be_of_the_kind_of_the_question():
    assert [item["examples"] for item in first_examples(ITEMS, POOL, 2, same="kind")] == [
        [0, 2],
        [1, 3],
        [0, 2],
        [1, 3],
    ]


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda: draw_examples(ITEMS, POOL, 21, 1), "21 shots need 21 examples, the data has 20"),
        (lambda: draw_examples(ITEMS, POOL, 20, 1, True), "20 shots need 21 examples"),
        (lambda: first_examples(ITEMS, POOL, 11, "kind"), "11 examples of kind 'a', the data has"),
    ],
)
def test_more_shots_than_examples_are_refused(choose, message: str):
    with pytest.raises(DataError, match=message):
        choose()
