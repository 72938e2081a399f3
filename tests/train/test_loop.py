"""What a run does, and what it leaves behind."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.config.train import TrainConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, TrainingError
from moesaic.model.build import build_model, load_model
from moesaic.model.residency import Residency
from moesaic.model.transformer import Transformer
from moesaic.runlog import RunRecord, read_run
from moesaic.train.loop import train
from moesaic.train.progress import Seen
from moesaic.train.setup import choose_device, prepare_model, prepare_tokenizer

Run = Callable[..., TrainConfig]


def record_of(config: TrainConfig) -> RunRecord:
    return read_run(Path(config.folder) / "record.jsonl")


class Heard:
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.steps: list[Seen] = []
        self.said: list[str] = []

    def step(self, seen: Seen) -> None:
        self.steps.append(seen)

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_run_learns(run: Run):
    config = run(steps=40, batch={"rows": 8}, schedule={"learning_rate": 1e-2})
    result = train(config)
    first, *_, last = record_of(config).of("step")
    assert first["next_token"] == pytest.approx(math.log(300), abs=0.3)
    assert last["next_token"] < first["next_token"] - 2
    assert last["mtp"] < first["mtp"] - 1
    (held_out,) = result.evaluations
    assert held_out["loss"] < first["next_token"] - 2
    assert held_out["perplexity"] == pytest.approx(math.exp(held_out["loss"]))


def test_every_step_is_recorded_with_its_losses_apart(run: Run):
    config = run()
    train(config)
    lines = record_of(config).of("step")
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        layers = 2
        parts = line["next_token"] + 0.3 * line["mtp"] + 1e-3 * layers * line["sequence_loss"]
        assert line["loss"] == pytest.approx(parts)
        assert line["max_violation_max"] >= line["max_violation_mean"] > 0
        assert 0 < line["load_entropy_mean"] < 1
        assert line["grad_norm"] > 0
        assert line["tokens_per_s"] > 0
        assert line["memory_bytes"] > 10**7
    assert [line["tokens"] for line in lines] == [96 * step for step in range(1, 9)]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([5e-3] + [1e-2] * 7)


def test_the_record_begins_with_all_settings_versions_and_the_seed(run: Run):
    config = run(seed=7)
    train(config)
    start = record_of(config).start
    assert start["config"] == json.loads(config.model_dump_json())
    assert start["seed"] == 7
    assert torch.__version__.startswith(start["versions"]["torch"])  # which may end in +cu130


def test_the_load_of_every_expert_is_recorded_when_asked_for(run: Run):
    config = run(logging={"load_every_steps": 4, "every_steps": 5})
    train(config)
    loads = record_of(config).of("load")
    assert [line["step"] for line in loads] == [4, 8]
    assert [line["step"] for line in record_of(config).of("step")] == [5]
    for line in loads:
        assert sorted(line["layers"]) == ["1", "2"]
        assert all(sum(load) == 96 * 3 for load in line["layers"].values())


def test_the_final_model_is_the_trained_one_and_has_its_tokenizer(run: Run):
    config = run(mtp_weight={"start": 0.3, "changes": [{"at": "50%", "to": 0.1}]})
    result = train(config)
    exported = load_model(Path(config.folder) / "model")
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], tensor, rtol=0, atol=0)
    tokenizer = Tokenizer.load(Path(config.folder) / "model")
    assert tokenizer.eos_id in exported.config.eos_token_ids
    assert [line["mtp_weight"] for line in record_of(config).of("step")] == [0.3] * 4 + [0.1] * 4


def test_a_run_goes_on_from_a_checkpoint_with_its_tokenizer(run: Run):
    first = run("first")
    loss = train(first).evaluations[0]["loss"]
    exported = str(Path(first.folder) / "model")
    still = {"schedule": {"learning_rate": 1e-9}, "balance": {}}
    second = run("second", model=exported, steps=1, **still)
    assert train(second).evaluations[0]["loss"] == pytest.approx(loss)
    tokenizers = [Path(c.folder) / "tokenizer" / "tokenizer.json" for c in (first, second)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_weights_may_be_exported_in_another_type(run: Run):
    config = run(checkpoint={"export_dtype": "bfloat16"})
    train(config)
    published = json.loads((Path(config.folder) / "model" / "config.json").read_text())
    assert published["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("precision", ["bfloat16", "mixed", "autocast"])
def test_every_precision_trains_near_float32(precision: str, run: Run):
    exact, lower = run("exact", steps=4), run("lower", steps=4, precision=precision)
    losses = [train(config).evaluations[0]["loss"] for config in (exact, lower)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)  # bf16: 8 significant bits near 5


def test_computing_layers_again_changes_nothing(run: Run):
    kept, again = run("kept"), run("again", recompute=True)
    losses = [[line["loss"] for line in record_of_run(config)] for config in (kept, again)]
    assert losses[0] == losses[1]


def record_of_run(config: TrainConfig) -> list[dict[str, Any]]:
    train(config)
    return record_of(config).of("step")


def test_the_batch_grows_by_whole_micro_batches(run: Run):
    ramp = {"start": 2.0, "changes": [{"at": "0%", "until": "50%", "to": 8.0}]}
    config = run(batch={"rows": ramp, "micro_rows": 2})
    tokens = [0] + [line["tokens"] for line in record_of_run(config)]
    rows = [(after - before) // 24 for before, after in pairwise(tokens)]
    assert rows == [2, 2, 4, 6, 8, 8, 8, 8]


def test_only_what_is_not_frozen_is_trained_and_saved(run: Run):
    config = run(balance={}, checkpoint={"every_steps": 4})
    tokenizer = prepare_tokenizer(config, Path(config.folder) / "tokenizer")
    model = prepare_model(config, tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp.experts" in name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train(config, model)
    assert result.model is model
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    prefix = "model.layers.1.mlp.experts."
    assert moved == {f"{prefix}gate_up_proj", f"{prefix}down_proj"}
    assert not (Path(config.folder) / "model").exists()
    size = (Path(config.folder) / "checkpoints/step-000008/state.safetensors").stat().st_size
    assert size < 4 * 3 * 1.5 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_model_that_holds_a_few_experts_trains_and_resumes(run: Run, tiny_config: Callable):
    whole, halves = run("whole", balance={}), run("halves", balance={})

    def partial() -> Transformer:
        residency = Residency.only({1: [0, 3, 4, 6]})
        shape = tiny_config("v3", vocab_size=300, num_hidden_layers=2)
        return build_model(shape, residency=residency)

    expected = train(whole, partial()).model.state_dict()
    asked = iter([False] * 4 + [True])
    assert train(halves, partial(), stop=lambda: next(asked)).interrupted
    for name, tensor in train(halves, partial()).model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_a_run_whose_loss_is_not_finite_stops_and_says_what_to_do(run: Run):
    config = run(schedule={"learning_rate": 1e30}, optimizer={"clip_norm": None})
    with pytest.raises(TrainingError) as error:
        train(config)
    problem = record_of(config).of("stop")[0]["problem"]
    assert problem in ("next_token=nan", "grad_norm=nan")
    message = str(error.value)
    assert message.startswith(f"step 2: {problem}, so nothing was changed and the run ended.")
    assert "Lower schedule.learning_rate or raise schedule.warmup_steps" in message
    assert "optimizer.on_non_finite='skip'" in message


def test_steps_that_are_not_finite_are_left_out_counted_and_bounded(run: Run):
    rules = {"on_non_finite": "skip", "most_skipped": 3}
    config, heard = run(schedule={"learning_rate": 1e30}, optimizer=rules), Heard()
    with pytest.raises(TrainingError, match="most_skipped=3"):
        train(config, display=heard)
    skips = record_of(config).of("skip")
    assert [(line["step"], line["skipped"]) for line in skips] == [(2, 1), (3, 2), (4, 3)]
    told = f"step 2: {skips[0]['problem']}, so nothing was changed; left out, 1 of at most 3"
    assert told in heard.said


def test_a_run_ends_with_its_data_and_says_so(run: Run):
    data = {**run().data.model_dump(), "epochs": 1}
    config, heard = run(steps=500, data=data, batch={"rows": 16}), Heard()
    result = train(config, display=heard)
    assert result.step < 500
    assert not result.interrupted
    (ended,) = record_of(config).of("end of data")
    assert (ended["step"], ended["steps"]) == (result.step, 500)
    assert f"the data ended after step {result.step} of 500; the run ends with it" in heard.said
    assert result.evaluations[0]["step"] == result.step


def test_what_was_read_and_left_out_is_recorded_once_even_if_the_run_was_stopped(run: Run):
    asked: list[None] = []
    train(run(), stop=lambda: asked.append(None) or len(asked) > 5)
    assert not record_of(run()).of("data")
    train(run())
    result = train(run())
    (line,) = record_of(run()).of("data")
    assert (line["step"], line["rows"], line["padding"]) == (8, 32, 0)
    (source,) = line["sources"]
    assert source["tokens"] == source["learned"] == result.tokens == 8 * 4 * 24
    assert result.data.sources[0].tokens == result.tokens


def test_progress_is_shown_for_every_step(run: Run):
    heard = Heard()
    train(run(), display=heard)
    assert [seen.step for seen in heard.steps] == list(range(1, 9))
    assert heard.steps[-1].steps == 8
    held_out = [text for text in heard.said if "held out" in text]
    assert [text.split(" | ")[0] for text in held_out] == [
        f"step {step} held out" for step in (3, 6, 8)
    ]


def test_rows_longer_than_the_context_are_refused(run: Run):
    data = {**run().data.model_dump(), "seq_len": 129}
    with pytest.raises(ConfigError) as error:
        train(run(data=data))
    assert "data.seq_len=129 is more than the model's max_position_embeddings=128" in str(
        error.value
    )


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(run: Run, tiny_config: Callable):
    first = run("first")
    train(first)
    tokenizer = str(Path(first.folder) / "model")
    small = tiny_config("v3", vocab_size=280).model_dump()
    with pytest.raises(ConfigError) as error:
        train(run("second", model=small, tokenizer=tokenizer))
    assert "model.vocab_size=280 is less than the 300 tokens" in str(error.value)


def test_auto_takes_a_gpu_if_there_is_one_and_a_missing_one_is_told():
    if torch.cuda.is_available():
        assert choose_device("auto") == "cuda"
        return
    assert choose_device("auto") == "cpu"
    with pytest.raises(ConfigError) as error:
        choose_device("cuda")
    assert "torch finds no GPU here; set device to 'cpu'" in str(error.value)
