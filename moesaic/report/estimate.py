"""`Estimate`: a number with its 95 % interval, and what may be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from moesaic.report.blocks import Finding

_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's factor of a two-sided 95 % interval for 1, 2, 3, … degrees of freedom."""
_NORMAL_95 = 1.960


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and the ends of its 95 % interval where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    """Measurements it is the mean of."""

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_zero(self) -> bool | None:
        """Whether 0 lies in the interval; None without one."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high

    def finding(self, higher_is_better: bool) -> Finding:
        """What it says as a difference: after minus before."""
        if self.is_zero is None:
            return "unknown"
        if self.is_zero:
            return "unclear"
        return "better" if (self.value > 0) == higher_is_better else "worse"


def around(value: float, stderr: float | None, n: int | None = None) -> Estimate:
    """A mean with its standard error over ``n`` measurements, which are many where it is None."""
    if stderr is None:
        return Estimate(value)
    half = (_NORMAL_95 if n is None else _factor(n)) * stderr
    return Estimate(value, value - half, value + half, n or 1)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of independent values; the interval is Student's, and there is none of one value.

    Source: Student, The probable error of a mean (1908).
    """
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    return around(mean, stdev(values) / sqrt(len(values)), len(values))


def _factor(n: int) -> float:
    """Standard errors on either side of a 95 % interval of the mean of ``n``."""
    return _T_95[n - 2] if n - 2 < len(_T_95) else _NORMAL_95
