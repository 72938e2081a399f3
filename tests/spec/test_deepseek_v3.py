"""What the DeepSeek-V3 report (arXiv 2412.19437) and its repository print."""

import pytest

from moesaic.config import presets
from moesaic.planner.memory import serve_memory
from moesaic.planner.params import params
from moesaic.planner.throughput import seconds_for


def test_v3_has_the_size_of_its_checkpoint():
    size = params(presets.DEEPSEEK_V3, train_experts=None)
    assert size.total == 671_026_419_200  # printed 671 B
    assert size.total_with_mtp == 684_489_845_504  # printed 685 B on the model page
    assert round(size.activated / 1e9) == 37  # printed 37 B


def test_the_prediction_module_is_stored_with_a_copy_of_embedding_and_head():
    size = params(presets.DEEPSEEK_V3, train_experts=None)
    assert size.mtp == 13_463_426_304
    assert size.mtp_copies == 2 * 129_280 * 7168  # printed 0.9 B each
    # The repository prints 11.5 B unique parameters; the tensors hold 11.6 B.
    assert size.mtp - size.mtp_copies == 11_610_068_224


def test_published_in_fp8_it_takes_half_a_byte_less_than_twice_per_weight():
    memory = serve_memory(params(presets.DEEPSEEK_V3), "float8", cached_tokens=0)
    assert memory.total == 673_150_575_280


def test_a_trillion_tokens_take_3_7_days_on_2048_devices():
    # section 1: 180 K device-hours for each trillion
    per_device = 1e12 / (180_000 * 3600)
    days = seconds_for(1e12, 2048 * per_device) / 86_400
    assert days == pytest.approx(3.7, abs=0.05)
