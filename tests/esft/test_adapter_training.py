"""Runs that train adapters: what moves, what is written, going on where one stopped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids
from slices import Run, run_in, stop_after, write_home

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors
from moesaic.config.esft import EsftConfig
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.esft.absorb import merge_adapter
from moesaic.esft.adapter import AdapterManifest, load_adapter_, read_adapter
from moesaic.esft.recipe import train_slice
from moesaic.esft.sign import read_public_key
from moesaic.model.build import load_model
from moesaic.model.quantised import QuantisedLinear
from moesaic.planner.adapters import adapted_tensors, adapter_size
from moesaic.runlog import read_run
from moesaic.train.state import saved_states


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A text, a checkpoint with a tokenizer for it, and the choice of its experts."""
    config = tiny_config("v2", vocab_size=300, n_shared_experts=1)
    folder = write_home(tmp_path_factory.mktemp("home"), config, "float32")
    (folder / "chosen.json").write_text('{"experts": {"1": [7, 0, 2], "2": [1, 2, 3, 4]}}')
    return folder


@pytest.fixture
def run(tmp_path: Path, home: Path) -> Run:
    """``run(folder, esft={…}, **changes)``: four steps of adapters of rank 2."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)

    def build(folder: str = "run", esft: dict[str, Any] | None = None, **changes: Any):
        adapters = {"selection": str(tmp_path / "chosen.json"), "lora": {"rank": 2}, **(esft or {})}
        return run_in(tmp_path, tmp_path / folder, adapters, **changes)

    return build


def _factors(adapter: Path | None) -> dict[str, torch.Tensor]:
    assert adapter is not None
    return read_safetensors(adapter / "adapter_model.safetensors")


def test_a_run_trains_adapters_alone_and_writes_them(run: Run, tmp_path: Path) -> None:
    base, config = tmp_path / "base", run(esft={"variant": "natural"})
    before = digest(base, verify=True)
    result = train_slice(config)
    assert result.shard == tmp_path / "run" / "adapter"
    assert not (tmp_path / "run" / "shard").exists()
    assert digest(base, verify=True) == before

    model = result.training.model
    lora = config.esft.lora if config.esft else None
    assert lora is not None
    size = adapter_size(adapted_tensors(model.config, lora, result.selection.experts), lora.rank)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == size
    held = read_safetensors(
        saved_states(tmp_path / "run" / "checkpoints")[-1] / "state.safetensors"
    )
    assert {n.removeprefix("weights.") for n in held if n.startswith("weights.")} == set(trained)
    states = {
        name.removeprefix("optimizer.").rpartition(".")[0] for name in held if "optim" in name
    }
    assert states == set(trained)

    assert result.shard is not None
    adapter = read_adapter(result.shard, model.config)
    assert adapter.manifest is not None
    assert adapter.manifest.work.base == before
    assert (adapter.manifest.work.tokens, adapter.manifest.work.steps) == (4 * 4 * 24, 4)
    assert adapter.manifest.lora == lora
    assert adapter.manifest.selection == result.selection
    factors = _factors(result.shard)
    assert all(part.any() for name, part in factors.items() if "lora_B" in name)


def test_a_natural_runs_model_its_adapter_and_their_merge_have_the_same_logits(
    run: Run, tmp_path: Path
) -> None:
    result = train_slice(run(esft={"variant": "natural"}))
    assert result.shard is not None
    trained = result.training.model
    ids_BS = random_ids(trained.config, 2, 20)
    loaded = load_model(tmp_path / "base")
    untrained = loaded(ids_BS)
    load_adapter_(loaded, result.shard)
    merge_adapter(tmp_path / "base", result.shard, tmp_path / "merged")
    expected = trained(ids_BS)
    assert (expected - untrained).abs().max() > 1e-3
    torch.testing.assert_close(loaded(ids_BS), expected, rtol=1e-5, atol=1e-5)
    merged = load_model(tmp_path / "merged")(ids_BS)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(run: Run, precision: str) -> None:
    whole = train_slice(run("whole", precision=precision))
    stopped = train_slice(run("stopped", precision=precision), stop_after(2))
    assert stopped.shard is None
    resumed = train_slice(run("stopped", precision=precision))
    one, other = _factors(whole.shard), _factors(resumed.shard)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("hold", ["cpu", "disk"])
def test_experts_brought_layer_by_layer_train_the_same_adapters(run: Run, hold: str) -> None:
    held = train_slice(run("held", esft={"variant": "natural"}))
    streamed = train_slice(run("streamed", esft={"variant": "natural", "hold": hold}))
    one, other = _factors(held.shard), _factors(streamed.shard)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", ["masked", "natural"])
@pytest.mark.parametrize(("hold", "off"), [("int8", 0.02), ("int4", 0.04)])
def test_adapters_beside_integers_learn_much_the_same(
    run: Run, variant: str, hold: str, off: float
) -> None:
    """All experts and all linear layers are integers then, those with adapters too."""
    held = train_slice(run("held", esft={"variant": variant}))
    small = {"hold": hold, "hold_linears": hold, "park_embedding": True}
    part = train_slice(run("part", esft={"variant": variant, **small}))
    model = part.training.model
    names = {name for name, m in model.named_modules() if isinstance(m, QuantisedLinear)}
    assert "model.layers.1.self_attn.kv_b_proj.base" in names
    assert "model.layers.0.mlp.down_proj" in names
    assert not any(parameter.ndim > 2 and len(parameter) for parameter in _frozen(model))
    exact, rounded = (_losses(result.training.folder.record) for result in (held, part))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=off)  # a router may choose others for some tokens


def _losses(record: Path) -> list[float]:
    return [line["loss"] for line in read_run(record).of("step")]


def _frozen(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if not parameter.requires_grad]


def test_masked_and_natural_adapters_are_of_the_same_experts_and_differ(run: Run) -> None:
    natural = train_slice(run("natural", esft={"variant": "natural"}))
    masked = train_slice(run("masked"))
    assert masked.training.model.moe_layers()[1].experts.resident == (0, 2, 7)
    one, other = _factors(natural.shard), _factors(masked.shard)
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_scored_experts_have_adapters(run: Run) -> None:
    chosen = {"selection": None, "experts": 3, "score_tokens": 300}
    result = train_slice(run(esft={**chosen, "variant": "frozen-kept", "frozen_experts": 2}))
    experts = {
        (int(parts[4]), int(parts[7]))
        for parts in (name.split(".") for name in _factors(result.shard))
        if parts[6] == "experts"
    }
    assert experts == {(i, j) for i, ids in result.selection.experts.items() for j in ids}
    assert all(len(m.experts.resident) == 5 for m in result.training.model.moe_layers().values())


@pytest.mark.parametrize(
    ("esft", "message"),
    [
        ({"selection": None, "experts": 3, "shared_experts": True}, "remove shared_experts and na"),
        ({"sign_with": "key.pem"}, "key.pem cannot be read"),
        ({"lora": {"rank": 2, "dropout": 0.1}}, r"esft\.lora\.dropout is not a setting"),
        ({"lora": {"rank": 9}}, r"lora\.rank=9 is more than .* lower it to at most 8"),
        ({"lora": {"rank": 2, "targets": ["k_proj"]}}, "names 'k_proj', which this model has not"),
    ],
)
def test_settings_that_contradict_adapters_are_refused_before_training(
    esft: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_slice(run(esft=esft))
    assert not (tmp_path / "run").exists()


def test_a_selection_that_trains_more_than_experts_is_refused(run: Run, tmp_path: Path) -> None:
    chosen = {"experts": {"1": [7, 0, 2]}, "shared_experts": True}
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    with pytest.raises(ConfigError, match=r"chosen\.json: shared_experts trains whole weights"):
        train_slice(run())


def test_going_on_with_another_rank_is_refused(run: Run) -> None:
    train_slice(run(), stop_after(1))
    with pytest.raises(ConfigError, match=r"esft\.lora\.rank was 2 and is 3"):
        train_slice(run(esft={"lora": {"rank": 3}}))


def test_a_run_signs_its_adapter(run: Run, keys: Path) -> None:
    found = train_slice(run(esft={"sign_with": str(keys / "alice.pem")})).shard
    assert found is not None
    signature = AdapterManifest.read(found).signature
    assert signature is not None
    assert signature.key == read_public_key(keys / "alice.pub")


def test_masked_integers_need_adapters() -> None:
    settings = {"experts": 3, "hold": "int4"}
    assert EsftConfig.parse({**settings, "lora": {}}).lora is not None
    with pytest.raises(ConfigError, match="has no use with variant='masked'"):
        EsftConfig.parse(settings)
