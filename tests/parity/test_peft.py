"""Adapters written here, loaded by PEFT into the same model in transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.esft.absorb import stack_adapter
from moesaic.esft.adapter import load_adapter_, write_adapter
from moesaic.esft.manifest import Work
from moesaic.esft.select import Selection
from moesaic.kernels.adapted import LowRank
from moesaic.model.adapt import adapt_
from moesaic.model.transformer import Transformer
from moesaic.planner.adapters import adapted_tensors
from moesaic.planner.inventory import TensorSpec

peft = pytest.importorskip("peft")
from parity.twin import transformers_twin  # noqa: E402  # after the check that it is there

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match"),  # they do: see the logits
]

EXPERTS = {1: (5, 2), 2: (0, 3, 7)}
PARTS = [("attention",), ("shared_experts", "dense"), ("experts",), ("attention", "experts")]


def written(folder: Path, config: ModelConfig, lora: LoraConfig) -> Transformer:
    """A model with adapters that change it, which are written to a folder."""
    model, generator = random_model(config), torch.Generator().manual_seed(1)

    def make(spec: TensorSpec) -> LowRank:
        factors = torch.empty(lora.rank, spec.shape[1]), torch.empty(spec.shape[0], lora.rank)
        return LowRank(*(part.normal_(0.0, 0.2, generator=generator) for part in factors))

    adapt_(model, adapted_tensors(config, lora, EXPERTS), make, lora.scale, torch.float32)
    work = Work(base="0" * 64, run={}, data=(), tokens=1, steps=1)
    write_adapter(folder, model, lora, Selection(experts=EXPERTS), work)
    return model


def in_transformers(config: ModelConfig, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(transformers_twin(random_model(config)), adapter).eval()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", PARTS, ids=" ".join)
@pytest.mark.parametrize("family", ["v2", "v3"])
def test_peft_computes_the_same_logits(
    family: str,
    targets: tuple[Any, ...],
    rslora: bool,
    tiny_config: Callable[..., ModelConfig],
    tmp_path: Path,
):
    """Adapters of routed experts in the form for models that stack them."""
    config = tiny_config(family)
    lora = LoraConfig(rank=2, alpha=3.0, rslora=rslora, targets=targets)
    model = written(tmp_path / "adapter", config, lora)
    stack_adapter(tmp_path / "adapter", config, tmp_path / "stacked")
    form = "stacked" if "experts" in targets else "adapter"
    ids_BS = random_ids(config, 2, 12)
    logits = in_transformers(config, tmp_path / form)(ids_BS).logits
    assert not torch.allclose(logits, random_model(config)(ids_BS), atol=0.1)
    torch.testing.assert_close(model(ids_BS), logits, rtol=1e-4, atol=1e-5)


def test_peft_refuses_adapters_of_some_experts_of_a_stack(
    tiny_config: Callable[..., ModelConfig], tmp_path: Path
):
    """Nothing is loaded in part and in silence: that is what the stacked form is for."""
    config = tiny_config("v2")
    written(tmp_path / "adapter", config, LoraConfig(rank=2, targets=("experts",)))
    with pytest.raises(RuntimeError, match=r"size mismatch for .*mlp.experts"):
        in_transformers(config, tmp_path / "adapter")


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_adapters_that_peft_writes_give_its_logits(
    family: str, tiny_config: Callable[..., ModelConfig], tmp_path: Path
):
    config = tiny_config(family)
    shared = [f"shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")]
    settings = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["kv_b_proj", "o_proj"], target_parameters=shared
    )
    theirs = peft.get_peft_model(transformers_twin(random_model(config)), settings).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    theirs.save_pretrained(tmp_path / "adapter")
    model, ids_BS = random_model(config), random_ids(config, 2, 12)
    load_adapter_(model, tmp_path / "adapter")
    torch.testing.assert_close(model(ids_BS), theirs(ids_BS).logits, rtol=1e-4, atol=1e-5)
