"""Perplexity of any text: what is counted, and how items become the published numbers."""

import json
from math import exp, log
from pathlib import Path

import pytest

from moesaic.data import corpus
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, DataError
from moesaic.eval.engine import Engine
from moesaic.eval.requests import Rolling, RollingAnswer
from moesaic.eval.run import evaluate
from moesaic.eval.tasks.perplexity import PerplexityTask
from moesaic.eval.tasks.registry import find_task
from moesaic.model.transformer import Transformer

TEXTS = ("one two three", "Où est-ce ?\n\nIci.", "一 二")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"text": text} for text in (*TEXTS, " \n")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "texts.jsonl"


def find(data: Path | str, limit: int | None = None) -> PerplexityTask:
    task = find_task("perplexity", Path(data), limit)
    assert isinstance(task, PerplexityTask)
    return task


def test_every_document_with_text_is_asked_for_whole(file: Path):
    task = find(file)
    assert [task.requests(item) for item in task.items] == [[Rolling(text)] for text in TEXTS]
    assert task.items[1]["where"] == f"{file}:2"


def test_words_bytes_and_tokens_are_counted(file: Path):
    task = find(file)
    counts = [
        {name: task.judge(item, [RollingAnswer(-7.0, 5)]).values[name] for name in ALL}
        for item in task.items
    ]
    words, tokens = (3, 4, 2), 5
    assert counts == [
        {
            "bits_per_byte": (-7.0, len(text.encode())),
            "byte_perplexity": (-7.0, len(text.encode())),
            "word_perplexity": (-7.0, count),
            "nats_per_token": (-7.0, tokens),
        }
        for text, count in zip(TEXTS, words, strict=True)
    ]


ALL = ("bits_per_byte", "byte_perplexity", "word_perplexity", "nats_per_token")


def test_lower_is_better_and_bits_per_byte_is_the_one_to_quote(file: Path):
    task = find(file)
    assert tuple(metric.name for metric in task.metrics) == ALL
    assert not any(metric.is_higher_better for metric in task.metrics)


def test_the_numbers_are_of_all_nats_by_all_units(
    file: Path, model: Transformer, tokenizer: Tokenizer
):
    engine = Engine(model, tokenizer)
    answers = [answer for _, answer in sorted(engine.answer([Rolling(text) for text in TEXTS]))]
    nats = -sum(a.log_probability for a in answers if isinstance(a, RollingAnswer))
    tokens = sum(len(tokenizer.encode_prompt(text)) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    scores = evaluate(engine, [find(file)]).tasks["perplexity"].scores.metrics
    found = {name: score.estimate.value for name, score in scores.items()}
    assert found == pytest.approx(
        {
            "bits_per_byte": nats / size / log(2),
            "byte_perplexity": exp(nats / size),
            "word_perplexity": exp(nats / 9),
            "nats_per_token": nats / tokens,
        }
    )


def test_the_limit_reads_the_first_documents(file: Path):
    assert [item["text"] for item in find(file, limit=2).items] == [*TEXTS[:2]]


def test_a_pattern_reads_all_its_files(file: Path):
    (file.parent / "more.txt").write_text("a text file is one document")
    assert len(find(file.parent / "*").items) == 4


def test_of_the_shipped_corpus_the_held_out_documents_are_read():
    task = find(f"corpus:{corpus.domains()[0]}", limit=3)
    assert [item["text"] for item in task.items] == corpus.read(corpus.domains()[0], "held_out")[:3]
    assert task.description["split"] == "held_out"


def test_the_description_says_which_text_it_was(file: Path):
    description = find(file).description
    file.write_text(file.read_text() + json.dumps({"text": "another"}) + "\n")
    changed = find(file).description
    assert description["data"] == changed["data"] == str(file)
    assert description["digest"] != changed["digest"]


def test_a_long_text_is_shown_by_its_beginning(tmp_path: Path):
    (tmp_path / "long.txt").write_text("word " * 1000)
    task = find(tmp_path / "long.txt")
    judged = task.judge(task.items[0], [RollingAnswer(-12.5, 1000)])
    assert judged.target == "word " * 40 + "…"
    assert judged.answer == "12.5000 nats over 1000 tokens"


def test_what_cannot_be_asked_is_refused(file: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="shots=2: perplexity has no examples; leave shots out"):
        find_task("perplexity", file, shots=2)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt has no document with text; name another"):
        find(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="is a folder; give a pattern like"):
        find(tmp_path)


def test_several_texts_are_tasks_of_their_own(
    model: Transformer, tokenizer: Tokenizer, file: Path, tmp_path: Path
):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "four five"}) + "\n")
    engine = Engine(model, tokenizer)
    tasks = [f"perplexity={file}", f"perplexity={other}"]
    found = evaluate(engine, tasks, tmp_path / "out")
    assert {name: task.scores.n for name, task in found.tasks.items()} == {
        "perplexity_texts": 3,
        "perplexity_other": 1,
    }
    [alone] = evaluate(engine, [f"perplexity={other}"]).tasks.values()
    assert alone.scores.metrics == found.tasks["perplexity_other"].scores.metrics
    assert sorted(path.stem for path in (tmp_path / "out/samples").glob("*.jsonl")) == [
        "perplexity_other",
        "perplexity_texts",
    ]
