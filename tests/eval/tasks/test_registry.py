"""Tasks by name, and the options that all of them take."""

from pathlib import Path

import pytest

from moesaic.errors import ConfigError
from moesaic.eval.tasks.registry import TASKS, find_task

from .conftest import Write


def test_every_published_task_has_its_name():
    mgsm = {
        f"mgsm_{kind}_{x}"
        for kind in ("direct", "native_cot")
        for x in ("de", "en", "es", "fr", "ja", "ru", "zh")
    }
    assert set(TASKS) >= mgsm | {
        *("arc_challenge", "arc_easy", "boolq", "cmath", "gsm8k", "gsm8k_cot", "hellaswag", "mmlu"),
        *("mmlu_humanities", "mmlu_other", "mmlu_social_sciences", "mmlu_stem", "openbookqa"),
    }
    assert len(set(TASKS)) == len(TASKS)


def test_a_task_bears_the_name_it_was_asked_by(write: Write, problems):
    data = write("gsm8k_test.jsonl", problems)
    assert find_task("gsm8k_cot", data).name == "gsm8k_cot"


def test_the_limit_takes_the_first_items(write: Write, problems):
    data = write("gsm8k_test.jsonl", problems)
    write("gsm8k_train.jsonl", problems)
    whole, few = find_task("gsm8k", data), find_task("gsm8k", data, limit=3)
    assert list(few.items) == list(whole.items[:3])
    assert [few.requests(item) for item in few.items] == [
        whole.requests(item) for item in few.items
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gsm8", {}, "'gsm8' is no task; did you mean 'gsm8k'.; there are: .*subjects of mmlu"),
        ("mmlu_anatomi", {}, "did you mean 'mmlu_anatomy'"),
        ("gsm8k", {"limit": 0}, "limit=0 leaves no items; give at least 1"),
        ("gsm8k", {"shots": -1}, "shots=-1 is less than 0; give 0 for no examples"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tmp_path: Path, name: str, changes, message: str):
    with pytest.raises(ConfigError, match=message):
        find_task(name, tmp_path, **changes)
