"""Numbers as text: fixed decimals, real minus signs, intervals."""

from collections.abc import Sequence
from math import exp

from moesaic.report.estimate import Estimate

MINUS = "\N{MINUS SIGN}"
NATS = 4
"""Decimals of a loss in nats."""


def number(value: float, digits: int = NATS) -> str:
    """With so many decimals: ``3.6901``."""
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = NATS) -> str:
    """With its sign: ``+0.0540``."""
    rounded = round(value, digits) or 0.0  # no minus before nothing
    return f"{rounded:+,.{digits}f}".replace("-", MINUS)


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1: ``42.5 %``."""
    return f"{number(100 * share, digits)} %"


def points(difference: float) -> str:
    """A difference of shares: ``+3.0 points``."""
    return f"{signed(100 * difference, 1)} points"


def plus_minus(found: Estimate, digits: int = NATS, is_signed: bool = False) -> str:
    """``3.690 ± 0.009``, or the value alone."""
    shown = signed(found.value, digits) if is_signed else number(found.value, digits)
    return shown if found.half is None else f"{shown} ± {number(found.half, digits)}"


def interval(found: Estimate, digits: int = NATS, scale: float = 1.0) -> str:
    """``95 % interval +0.3 to +5.7``; what is missing where there is none."""
    if found.low is None or found.high is None:
        return "no interval is known"
    low, high = (signed(scale * end, digits) for end in (found.low, found.high))
    return f"95 % interval {low} to {high}"


def ratio(rise: float) -> str:
    """What a rise of the loss does to the probability of the right token: ``1.80 times``."""
    return f"{number(exp(-rise), 2)} times"


def listed(names: Sequence[str], joint: str = "and") -> str:
    """``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {joint} {names[-1]}"


def plural(n: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end with a mark between them."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]} […] {text[len(text) - (most - head) :]}"
