"""Known devices."""

import pytest

from moesaic.errors import ConfigError
from moesaic.planner.devices import DEVICES, USABLE, devices_needed, get_device


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_device_is_plausible_and_names_its_source(device):
    assert 2**33 < device.memory < 2**39
    assert 1e10 < device.bandwidth < 1e13
    assert 1e12 < device.bf16 < 1e16
    assert device.fp8 is None or device.fp8 == pytest.approx(2 * device.bf16, rel=0.02)
    assert device.source


def test_a_part_of_the_memory_is_left_to_the_driver():
    device = get_device("h100-sxm")
    usable = int(USABLE * device.memory)
    assert devices_needed(usable, device) == 1
    assert devices_needed(usable + 1, device) == 2
    assert devices_needed(0, device) == 1


def test_an_unknown_device_gets_a_suggestion_and_the_list():
    with pytest.raises(ConfigError, match="not a known device; did you mean h100-sxm or h100-pcie"):
        get_device("H100")
    with pytest.raises(ConfigError, match="did you mean 'rtx-4090'"):
        get_device("rtx4090")
    with pytest.raises(ConfigError, match=r"the devices are h100-sxm, .*laptop-cpu$"):
        get_device("abacus")
