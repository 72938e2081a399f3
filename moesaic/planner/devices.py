"""Known accelerators: memory, bandwidth and dense peaks, as their makers print them."""

from dataclasses import dataclass

from moesaic.errors import ConfigError, suggest

GIB = 2**30
USABLE = 0.95
"""Share of the memory a model may take; the rest is the driver's and the allocator's."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. Peaks are dense, without structured sparsity, summed in float32."""

    name: str
    label: str
    memory: int
    """Bytes. Makers print GB where the device has as many GiB."""
    bandwidth: float
    """Bytes per second between memory and chip."""
    bf16: float
    """BF16 operations per second."""
    fp8: float | None
    """FP8 operations per second; None where there are no such units."""
    source: str


_ALL = (
    Device(
        "h100-sxm", "H100 SXM", 80 * GIB, 3.35e12, 989.4e12, 1978.9e12,
        "NVIDIA H100 datasheet; Hopper architecture whitepaper, table 2",
    ),
    Device(
        "h100-pcie", "H100 PCIe", 80 * GIB, 2.0e12, 756e12, 1513e12,
        "NVIDIA H100 PCIe datasheet",
    ),
    Device("h200", "H200 SXM", 141 * GIB, 4.8e12, 989.4e12, 1978.9e12, "NVIDIA H200 datasheet"),
    Device("b200", "B200", 180 * GIB, 7.7e12, 2250e12, 4500e12, "NVIDIA HGX B200 datasheet"),
    Device("a100-40", "A100 40 GB", 40 * GIB, 1.555e12, 312e12, None, "NVIDIA A100 datasheet"),
    Device("a100-80", "A100 80 GB", 80 * GIB, 2.039e12, 312e12, None, "NVIDIA A100 datasheet, SXM"),
    Device("l40s", "L40S", 48 * GIB, 0.864e12, 362.05e12, 733e12, "NVIDIA L40S datasheet"),
    Device(
        "rtx-5090", "RTX 5090", 32 * GIB, 1.792e12, 209.5e12, 419e12,
        "NVIDIA RTX Blackwell architecture whitepaper, appendix A",
    ),
    Device(
        "rtx-4090", "RTX 4090", 24 * GIB, 1.008e12, 165.2e12, 330.3e12,
        "NVIDIA Ada architecture whitepaper, appendix A",
    ),
    Device(
        "rtx-3090", "RTX 3090", 24 * GIB, 0.936e12, 71e12, None,
        "NVIDIA Ampere GA102 architecture whitepaper, appendix A",
    ),
    Device("mi300x", "MI300X", 192 * GIB, 5.3e12, 1307.4e12, 2614.9e12, "AMD MI300X datasheet"),
    Device(
        "laptop-cpu", "laptop CPU", 16 * GIB, 89.6e9, 2.05e12, None,
        "eight Zen 4 cores at 4 GHz, 64 BF16 operations per cycle each; two channels of DDR5-5600",
    ),
)  # fmt: skip

DEVICES: dict[str, Device] = {device.name: device for device in _ALL}
"""Every device by the name the command line takes."""


def get_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ConfigError: if it is not known; the message lists those that are.
    """
    if name in DEVICES:
        return DEVICES[name]
    alike = [known for known in DEVICES if name and known.startswith(name.lower())]
    hint = f"; did you mean {' or '.join(alike)}?" if alike else suggest(name.lower(), DEVICES)
    raise ConfigError(f"{name!r} is not a known device{hint}; the devices are {', '.join(DEVICES)}")


def devices_needed(n_bytes: float, device: Device) -> int:
    """Devices that hold so many bytes together, if they could be split perfectly."""
    return max(1, -int(-n_bytes // (USABLE * device.memory)))
