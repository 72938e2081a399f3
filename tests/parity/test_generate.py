"""Greedy text is the reference implementation's, from the same folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.model.build import build_model

transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 9, 2], [7, 30], [3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["v2", "v3"])
def test_greedy_tokens_equal_the_reference_generation(
    tiny_config: Callable[..., ModelConfig], tmp_path: Path, family: str
) -> None:
    config = tiny_config(family, eos_token_id=None)
    model = build_model(config, seed=2)
    save(tmp_path / "model", config, model.state_dict(), "float32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    expected = [
        reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    written = moesaic.generate(tmp_path / "model", PROMPTS, max_new_tokens=24, temperature=0)
    assert [list(text.ids) for text in written] == expected
