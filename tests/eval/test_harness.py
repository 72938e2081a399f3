"""The same checkpoint asked by lm-evaluation-harness through transformers, by the harness through
our engine, and by our own evaluation: the same answers, the same scores."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from eval import harness_job

from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.eval.run import evaluate
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    *(
        pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
        for name in ("lm_eval", "transformers", "accelerate")
    ),
]

STEPS = 120
MOST_NEW, MOST_SEEN = 24, 96
PLACES = ("the shelf", "a box", "the old red bag", "one of the three tables")
PROBLEMS = [
    {
        "question": f"There are {n} cups on {place} and {n} in the sink. How many cups are there?",
        "answer": f"There are {n} + {n} = {2 * n} cups.\n#### {2 * n}",
    }
    for n, place in enumerate(PLACES * 3, start=2)
]
EVENTS = [
    {
        "ind": n,
        "activity_label": "Putting things away",
        "ctx_a": f"A woman takes {n} cups from {PLACES[n % 4]}.",
        "ctx_b": "she" if n % 2 else "",
        "endings": [f"puts {n + k} of them on {PLACES[(n + k * k) % 4]}." for k in range(4)],
        "label": str(n % 3),
    }
    for n in range(12)
]
TEXTS = [
    {"text": text, "page": text}
    for text in (
        "one two three four five",
        "Two cups stand on the shelf; five are in a box.\n\nThree are nowhere. " * 8,
        "Où sont les tasses ?\nSur la table !",
    )
]
DATA = {
    "hellaswag": (EVENTS, EVENTS),
    "gsm8k": (PROBLEMS[:6], PROBLEMS[6:]),
    "wikitext": (TEXTS, TEXTS),
}
"""What is asked and what examples are drawn from, by the harness's name of the task."""


@dataclass(frozen=True)
class Found:
    """What one class of models gives in the harness."""

    scores: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Sequence[Any]]
    """Of every task, by item."""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Path:
    """A trained checkpoint in ``model``, and data in ``data``."""
    place = tmp_path_factory.mktemp("harness")
    told = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in PROBLEMS]
    texts = [f"{one}\n\n{told[(n + step) % 12]}" for n, one in enumerate(told) for step in (5, 9)]
    tokenizer = train_bpe(texts, 400)
    config = tiny_config("v3", vocab_size=tokenizer.vocab_size, num_nextn_predict_layers=0)
    model = trained(config, [tokenizer.encode_prompt(text) for text in texts])
    save(place / "model", config, model.state_dict(), "float32")
    tokenizer.save(place / "model")
    (place / "data").mkdir()
    for name, (asked, examples) in DATA.items():
        for split in ("train", "validation", "test"):
            lines = map(json.dumps, examples if split == "train" else asked)
            file_of(place, name, split).write_text("\n".join(lines))
    return place


def trained(config: ModelConfig, rows: Sequence[Sequence[int]]) -> Transformer:
    """A model that has learned some rows well enough to answer some questions."""
    model = build_model(config, seed=1)
    width = max(map(len, rows))
    ids_BS = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    labels_BS = torch.tensor([[*row[1:], *[-100] * (width - len(row) + 1)] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(ids_BS, labels_BS)
        (loss.next_token / loss.tokens).backward()
        optimizer.step()
    return model.eval()


def file_of(place: Path, name: str, split: str) -> Path:
    return place / "data" / f"{name}_{split}.jsonl"


@pytest.fixture(scope="module")
def job(place: Path) -> Mapping[str, Any]:
    """What the harness says, in a process of its own."""
    cut = f"dtype=float32,max_length={MOST_SEEN}"
    models = {
        "hf": f"pretrained={place / 'model'},{cut}",
        "moesaic": f"folder={place / 'model'},{cut}",
    }
    files = {
        name: {split: str(file_of(place, name, split)) for split in ("train", "validation", "test")}
        for name in DATA
    }
    tasks = {name: (f"{name}/{name}.yaml", files[name]) for name in DATA}
    (place / "job.json").write_text(
        json.dumps({"models": models, "tasks": tasks, "most": MOST_NEW})
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join((str(tests.parent), str(tests)))
    done = subprocess.run(
        [sys.executable, harness_job.__file__, str(place)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "HF_HOME": str(place / "hub")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "result.json").read_text())


@pytest.fixture
def by_transformers(job: Mapping[str, Any]) -> Found:
    return Found(**job["models"]["hf"])


@pytest.fixture
def by_our_engine(job: Mapping[str, Any]) -> Found:
    return Found(**job["models"]["moesaic"])


def test_run_as_a_program_the_module_hands_over_to_the_harness_which_then_knows_our_models(job):
    assert job["started"] == ["MoesaicLM"]


@pytest.mark.parametrize("name", ["hellaswag", "wikitext"])
def test_every_likelihood_is_the_same_through_transformers_and_through_our_engine(
    by_transformers: Found, by_our_engine: Found, name: str
):
    expected, found = by_transformers.answers[name], by_our_engine.answers[name]
    assert likelihoods(found) == pytest.approx(likelihoods(expected), rel=1e-5)


def likelihoods(answers: Sequence[Any]) -> list[float]:
    """Log-probabilities, and 1 or 0 for whether it is the most probable continuation."""
    flat = [answer for item in answers for answer in item]
    return [float(x) for answer in flat for x in (answer if isinstance(answer, list) else [answer])]


def test_every_text_is_the_same_through_transformers_and_through_our_engine(
    by_transformers: Found, by_our_engine: Found
):
    assert by_our_engine.answers["gsm8k"] == by_transformers.answers["gsm8k"]


def test_the_harness_gives_our_engine_the_scores_of_transformers(
    by_transformers: Found, by_our_engine: Found
):
    for name in DATA:
        expected = numbers(by_transformers.scores[name])
        assert numbers(by_our_engine.scores[name]) == pytest.approx(expected, rel=1e-5)


def test_our_own_evaluation_gives_the_scores_of_the_harness(place: Path, by_transformers: Found):
    found = evaluate(
        place / "model",
        ["hellaswag", "gsm8k", f"perplexity={file_of(place, 'wikitext', 'test')}"],
        data=place / "data",
        max_length=MOST_SEEN,
        max_new_tokens=MOST_NEW,
    )
    names = {"perplexity": "wikitext", "hellaswag": "hellaswag", "gsm8k": "gsm8k"}
    for name, task in found.tasks.items():
        expected = numbers(by_transformers.scores[names[name]])
        for metric, score in task.scores.metrics.items():
            if metric != "nats_per_token":  # which the harness does not have
                key = metric if "," in metric else f"{metric},none"
                assert score.estimate.value == pytest.approx(expected[key], rel=1e-5), metric


def test_the_model_answers_some_questions_and_not_others(by_transformers: Found):
    """Else the comparisons above would say little."""
    assert 0 < by_transformers.scores["hellaswag"]["acc,none"] < 1
    assert 0 < by_transformers.scores["gsm8k"]["exact_match,strict-match"] < 1


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores without their errors, which the harness finds in another way."""
    return {
        name: value
        for name, value in scores.items()
        if isinstance(value, float) and "stderr" not in name
    }
