"""The script that our scores and the harness's are compared by has scores that are known."""

import json
from pathlib import Path

import pytest

from benchmarks.against_harness import alike, scripted, shares, table
from benchmarks.measure.questions import QUICK_ROWS, Questions, rows_of
from moesaic.eval.tasks.registry import find_task


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("name", ["gsm8k", "hellaswag"])
def test_scores_known_from_the_rows_are_those_of_the_tasks(
    name: str, limit: int | None, tmp_path: Path
):
    questions = Questions.write(tmp_path / "data", QUICK_ROWS, limit)
    task = find_task(name, questions.folder, limit)
    values = [
        shares(
            task.judge(
                item, [scripted(one, questions.answers) for one in task.requests(item)]
            ).values
        )
        for item in task.items
    ]
    known = questions.known(name)
    assert len(values) == (limit or 20)
    for metric, score in known.items():
        assert sum(one[metric] for one in values) / len(values) == pytest.approx(score)
    assert 0 < max(known.values()) < 1


def test_rows_whose_parts_were_put_together_are_taken_apart(tmp_path: Path):
    row = {"query": "Cooking: A man: he", "endings": ["eats.", "runs."], "label": 1}
    (tmp_path / "hellaswag_val.jsonl").write_text(json.dumps(row) + "\n")
    [found] = rows_of("hellaswag", tmp_path)["validation"]
    assert (found["activity_label"], found["ctx_a"], found["label"]) == (
        "Cooking",
        "A man: he",
        "1",
    )
    with pytest.raises(SystemExit, match=r"has no gsm8k_test\.jsonl of gsm8k"):
        rows_of("gsm8k", tmp_path)


def test_the_table_has_a_row_for_every_metric():
    case = {"n": 2, "ours": {"acc": 0.5}, "harness": {"acc": 0.5}, "items_that_differ": 0}
    assert "| a | acc | 2 | 0.500000 | 0.500000 |" in table({"a": case}).to_markdown()


def test_answers_are_alike_but_for_rounding():
    text = {"text": " 6", "tokens": 2}
    assert alike([text], [" 6"])
    assert not alike([text], [" 7"])
    likelihood = {"log_probability": -10.0, "is_greedy": False, "tokens": 3}
    assert alike([likelihood], [[-10.0005, False]])
    assert alike([likelihood], [["-10.0005", "False"]])
    assert not alike([likelihood], [[-10.01, False]])
