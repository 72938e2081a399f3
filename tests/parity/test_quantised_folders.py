"""transformers reads folders of integers and of FP8 blocks to the values that are read here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_model

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import Form, quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.model.build import load_model

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.parity


def in_transformers(folder: Path, form: Form) -> dict[str, torch.Tensor]:
    """The weights of its model, which restores some of them at their first use."""
    load, changes = transformers.AutoModelForCausalLM.from_pretrained, dict[str, Any]()
    if form == "fp8":  # products in FP8 need a GPU
        changes["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
    model = load(folder, dtype=torch.bfloat16 if changes else torch.float32, **changes)
    with torch.inference_mode():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    return model.state_dict()


@pytest.mark.filterwarnings("ignore")  # of compressed-tensors, about names of its own
@pytest.mark.parametrize("family", ["v2", "v3"])
@pytest.mark.parametrize("form", ["4", "8", "fp8"])
def test_transformers_restores_the_weights_of_a_quantised_folder(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], family: str, form: Form
) -> None:
    whole = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 128}
    config = tiny_config(family, num_nextn_predict_layers=0, **whole)
    base = random_model(config).state_dict()
    save(tmp_path / "base", config, base, "bfloat16")
    folder = tmp_path / "quantised"
    quantise_folder(Reader(tmp_path / "base"), folder, form, 64, lambda spec: None)
    theirs, moved = in_transformers(folder, form), list[str]()
    for name, weight in load_model(folder, "float32").state_dict().items():
        torch.testing.assert_close(theirs[name].float(), weight, rtol=2**-8, atol=1e-7)  # bfloat16
        if not torch.equal(weight, base[name].bfloat16().float()):
            moved.append(name)
    assert all(any(part in name for name in moved) for part in ("self_attn.", ".experts."))
