"""The planner's peak of a training step against what a real one allocates.

Steps run on the CPU in the forms of a GPU: one row for each pair of token and expert, and fused
attention. What remains of the CPU is that operations over two dtypes copy one of them first; that,
and layers so narrow that small tensors count, is what the tolerance is for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_meter import most_allocated
from models import random_model
from variant_steps import (
    VARIANTS,
    Variant,
    load_variant,
    planned_peak,
    run_config,
    take_forms_of_a_gpu,
    take_two_steps,
)

from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.config.presets import SMALL_V2, TINY_V1, TINY_V2, TINY_V3
from moesaic.config.train import OptimizerConfig, Precision, TrainConfig
from moesaic.model.build import load_model
from moesaic.train.setup import types_of

TOKENS = 256
FAMILIES = {
    config.model_type: config.changed(vocab_size=256) for config in (TINY_V1, TINY_V2, TINY_V3)
}
V2 = FAMILIES["deepseek_v2"]
Check = Callable[..., None]


@pytest.fixture(autouse=True)
def forms_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    take_forms_of_a_gpu(monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelConfig, str], Path]:
    """``base(config, dtype)``: a checkpoint, written once."""
    home = tmp_path_factory.mktemp("bases")
    written: dict[tuple[ModelConfig, str], Path] = {}

    def write(config: ModelConfig, dtype: str) -> Path:
        key = config, dtype
        if key not in written:
            written[key] = home / str(len(written))
            save(written[key], config, random_model(config).state_dict(), dtype)
        return written[key]

    return write


@pytest.fixture
def check(base: Callable[[ModelConfig, str], Path]) -> Check:
    """``check(config, variant, precision, …)``: hold the planned peak against a real one."""

    def compare(
        config: ModelConfig,
        variant: Variant,
        precision: Precision = "bfloat16",
        recompute: bool = False,
        passes: int = 1,
        **optimizer: Any,
    ) -> None:
        if variant.frozen is not None:  # a slice is trained without prediction modules
            config = config.changed(num_nextn_predict_layers=0)
        folder = base(config, "float32" if precision == "float32" else "bfloat16")
        run = run_config(precision, recompute, OptimizerConfig(**optimizer), TOKENS)
        measured = most_allocated(lambda: train_two_steps(folder, variant, run, passes))
        planned = planned_peak(config, variant, run, passes)
        assert planned == pytest.approx(measured, rel=0.1)

    return compare


def train_two_steps(folder: Path, variant: Variant, run: TrainConfig, passes: int) -> None:
    if variant.frozen is None:
        dtype, compute = types_of(run.precision)
        model = load_model(folder, dtype, compute_dtype=compute, recompute=run.recompute)
    else:
        model = load_variant(folder, variant, run)
    take_two_steps(model, run, passes)


@pytest.mark.parametrize(("precision", "recompute"), [("float32", False), ("bfloat16", True)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_peak_of_a_variant_is_planned_within_a_tenth(
    variant: str, precision: Precision, recompute: bool, check: Check
):
    check(V2, VARIANTS[variant], precision, recompute)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "recompute"),
    [("float32", True), ("bfloat16", False), ("mixed", False), ("mixed", True)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_peak_in_every_precision_is_planned_within_a_tenth(
    variant: str, precision: Precision, recompute: bool, check: Check
):
    check(V2, VARIANTS[variant], precision, recompute)


@pytest.mark.parametrize("variant", ["A", "full"])
@pytest.mark.parametrize("family", ["deepseek", "deepseek_v3"])
def test_the_peak_of_other_families_is_planned_within_a_tenth(
    family: str, variant: str, check: Check
):
    check(FAMILIES[family], VARIANTS[variant])


@pytest.mark.parametrize(
    ("variant", "precision", "states"),
    [
        ("A", "bfloat16", "float32"),
        ("A", "bfloat16", "int8"),
        ("full", "mixed", "bfloat16"),
        ("full", "mixed", "int8"),
    ],
)
def test_the_peak_with_moments_of_another_form_is_planned_within_a_tenth(
    variant: str, precision: Precision, states: str, check: Check
):
    check(V2, VARIANTS[variant], precision, recompute=True, states=states)


@pytest.mark.parametrize(
    ("variant", "gradients"), [("A", "weights"), ("D-int4", "float32"), ("full", "weights")]
)
def test_the_peak_of_several_passes_is_planned_within_a_tenth(
    variant: str, gradients: str, check: Check
):
    check(V2, VARIANTS[variant], recompute=True, passes=2, gradients=gradients)


def test_the_peak_with_a_large_vocabulary_is_planned_within_a_tenth(check: Check):
    check(TINY_V2, VARIANTS["A"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_peak_of_a_larger_model_is_planned_within_a_tenth(variant: str, check: Check):
    check(SMALL_V2, VARIANTS[variant], recompute=True)
