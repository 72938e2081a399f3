"""The planner's peak of a training step of DeepSeek-V2-Lite against what its operations hold."""

from dataclasses import replace

import pytest
import torch
from traced import UnwrittenCheckpoint, most_traced
from variant_steps import (
    VARIANTS,
    load_variant,
    planned_peak,
    run_config,
    take_forms_of_a_gpu,
    take_two_steps,
)

from moesaic.config.lora import LoraConfig
from moesaic.config.presets import DEEPSEEK_V2_LITE
from moesaic.config.train import OptimizerConfig
from moesaic.esft.hold import FrozenReader
from moesaic.kernels import groupwise
from moesaic.model.build import empty_model
from moesaic.model.quantised import QuantisedExperts

TOKENS = 4096
CASES = {
    **{name: variant for name, variant in VARIANTS.items() if variant.lora is None},
    "LoRA": replace(VARIANTS["LoRA natural"], lora=LoraConfig()),
    "QLoRA": replace(VARIANTS["QLoRA"], lora=LoraConfig()),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # all are alike
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_deepseek_v2_lite_is_planned_within_a_fiftieth(
    name: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
):
    take_forms_of_a_gpu(monkeypatch)
    monkeypatch.setattr(groupwise, "_AT_ONCE_ON_CPU", groupwise._AT_ONCE_ON_GPU)
    monkeypatch.setattr(QuantisedExperts, "put_", lambda *parts: None)  # codes have no values
    monkeypatch.setattr(FrozenReader, "read_all_into_", lambda *parts: None)  # nor has what is read
    variant, run = CASES[name], run_config("bfloat16", recompute, OptimizerConfig(), TOKENS)

    def work() -> None:
        if variant.frozen is None:
            model = empty_model(DEEPSEEK_V2_LITE, torch.bfloat16, recompute=recompute)
        else:
            model = load_variant(UnwrittenCheckpoint(DEEPSEEK_V2_LITE), variant, run)
        take_two_steps(model, run, passes=1)

    peak = most_traced(work, learned=TOKENS)
    assert planned_peak(DEEPSEEK_V2_LITE, variant, run, passes=1) == pytest.approx(peak, rel=0.02)
