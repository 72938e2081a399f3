"""Print and read counts, bytes and durations: `1.80 B`, `3.11 GB`, `22.5 k tok/s`, `1 h 45 min`."""

import re

from moesaic.errors import ConfigError

_COUNT_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def count(value: float) -> str:
    """A count in the field's suffixes, three significant digits or more: `15.71 B`, `861.8 M`."""
    for step, suffix in _COUNT_STEPS:
        scaled = value / step
        if abs(scaled) >= 0.99995:  # what would print as 1000.0 of the smaller suffix
            digits = 1 if abs(scaled) >= 99.995 else 2
            return f"{scaled:.{digits}f} {suffix}"
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


def flop(value: float) -> str:
    """Floating-point operations: `5.47 GFLOP`."""
    for step, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= step:
            return f"{value / step:.2f} {prefix}FLOP"
    return f"{value:.0f} FLOP"


def gb(n_bytes: float) -> str:
    """Bytes in powers of ten: `17.0 GB`."""
    return _bytes(n_bytes, 1000, ("B", "KB", "MB", "GB", "TB"))


def gib(n_bytes: float) -> str:
    """Bytes in powers of two: `15.8 GiB`."""
    return _bytes(n_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    """A time a person can read: `0.8 s`, `3 min 20 s`, `1 h 45 min`, `2 d 3 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    for unit, big, small_unit, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if total >= big:
            return f"{total // big} {unit} {total % big // small} {small_unit}"
    return f"{total // 60} min {total % 60} s"


def parse_bytes(text: str) -> int:
    """Bytes from `512MB`, `4GiB`, `1000`.

    Raises:
        ConfigError: if the text is no size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?i?B?)\s*", text)
    if not match or match[2] not in _BYTE_UNITS:
        units = ", ".join(unit for unit in _BYTE_UNITS if unit)
        raise ConfigError(f"{text!r} is not a size; write a number and one of {units}, as in 4GiB")
    return round(float(match[1]) * _BYTE_UNITS[match[2]])


def _bytes(n_bytes: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while round(abs(n_bytes), 1) >= base and power < len(units) - 1:
        n_bytes, power = n_bytes / base, power + 1
    return f"{n_bytes:.0f} {units[0]}" if power == 0 else f"{n_bytes:.1f} {units[power]}"
