"""A model is held against a base on the same items, and only on those."""

from pathlib import Path

import pytest
import torch
from models import random_model
from small_tasks import Counted, Said, all_tasks, choices, read

from moesaic.checkpoint.save import save
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError
from moesaic.eval.engine import Engine
from moesaic.eval.run import evaluate
from moesaic.model.transformer import Transformer


def nudged(model: Transformer, amount: float) -> Transformer:
    """Almost the same model."""
    other = random_model(model.config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        noise = torch.empty_like(other.head_weight).normal_(0, amount, generator=generator)
        other.head_weight.add_(noise)
    return other


def test_a_base_is_compared_item_by_item(
    engine: Counted, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    evaluate(engine, all_tasks(), tmp_path / "base")
    other = Engine(nudged(model, 0.02), tokenizer, engine.config)
    result = evaluate(other, all_tasks(), tmp_path / "out", base=tmp_path / "base")
    found = read(tmp_path / "out")
    assert found["base"] == {"folder": None, "digest": engine.source.digest}
    base = read(tmp_path / "base")
    for name, task in found["tasks"].items():
        for metric, against in task["against"].items():
            score, before = task["metrics"][metric], base["tasks"][name]["metrics"][metric]
            assert against["base"] == pytest.approx(before["value"])
            assert against["difference"] == pytest.approx(score["value"] - before["value"])
            assert against["low"] <= against["difference"] <= against["high"]
            assert 0 < against["p"] <= 1
    for name, metric in (("choices", "likelihood"), ("texts", "bits_per_byte")):
        task = found["tasks"][name]  # what nearly equal models have in common cancels
        assert task["against"][metric]["stderr"] < task["metrics"][metric]["stderr"] / 2
    assert found["tasks"]["choices"]["against"]["acc"]["test"] == "exact McNemar"
    assert found["tasks"]["texts"]["against"]["bits_per_byte"]["test"] == "paired permutation"
    assert result.tasks["choices"].verdict("acc") == "cannot tell apart"


def test_better_is_lower_where_lower_is_better(
    engine: Counted, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    worse = random_model(model.config)
    with torch.no_grad():
        worse.head_weight.mul_(3)  # as sure of itself as it is wrong
    evaluate(Engine(worse, tokenizer), all_tasks(), tmp_path / "base")
    result = evaluate(engine, all_tasks(), base=tmp_path / "base")
    assert result.tasks["texts"].against["bits_per_byte"].difference < 0
    assert result.tasks["texts"].verdict("bits_per_byte") == "better"
    assert result.tasks["choices"].verdict("likelihood") == "better"


def test_a_base_that_is_a_checkpoint_is_evaluated_with_the_same_settings(
    folder: Path, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = nudged(model, 0.02)
    save(tmp_path / "other", other.config, other.state_dict(), "float32")
    tokenizer.save(tmp_path / "other")
    tasks, out, said = all_tasks(4), tmp_path / "out", Said()
    result = evaluate(tmp_path / "other", tasks, out, base=folder, display=said, max_length=64)
    assert said.lines == [f"base: {folder}"]
    assert read(out / "base")["model"]["folder"] == str(folder)
    assert read(out / "base")["settings"] == read(out)["settings"]
    assert read(out)["settings"]["max_length"] == 64
    assert result.base is not None
    assert result.base.digest == read(out / "base")["model"]["digest"]
    alone = evaluate(folder, tasks, max_length=64)
    against = result.tasks["choices"].against["likelihood"]
    assert against.base == alone.tasks["choices"].scores.metrics["likelihood"].estimate.value


def test_a_base_that_was_asked_otherwise_is_refused_before_anything_is_asked(
    engine: Counted, tmp_path: Path
) -> None:
    evaluate(engine, [choices(3)], tmp_path / "base")
    asked = engine.asked
    with pytest.raises(DataError) as error:
        evaluate(engine, [choices(5)], base=tmp_path / "base")
    assert str(error.value) == (
        f"{tmp_path}/base answers 3 of the 5 questions of choices: it was asked with other shots, "
        "data or limit; evaluate it with these, or give the base's checkpoint folder"
    )
    assert engine.asked == asked


def test_a_folder_that_is_no_base_is_named(engine: Counted, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is no base: it has neither a checkpoint's config\.json nor"
    ):
        evaluate(engine, [choices(1)], base=tmp_path)
    (tmp_path / "results.json").write_text('{"kind": "routing"}')
    with pytest.raises(
        DataError, match=r"is not the result of an evaluation \(its kind is 'routing'\)"
    ):
        evaluate(engine, [choices(1)], base=tmp_path)
