"""What several seeds say: means with their 95 % intervals, and differences seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any, Literal

_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's factor of a 95 % interval of the mean, by the number of seeds."""

Verdict = Literal["reproduced", "not reproduced", "cannot tell"]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval where there are several values.

    Source: Student's t; Gosset 1908.
    """
    if len(values) < 2:
        return round(values[0], 4), None
    factor = _T_95.get(len(values), 2.306)
    return round(mean(values), 4), round(factor * stdev(values) / sqrt(len(values)), 4)


@dataclass(frozen=True, slots=True)
class Claim:
    """A published statement: one loss is below another, or comes near it."""

    text: str
    left: str
    right: str
    printed: str
    """What the paper measured, and where."""
    tolerance: float = 0.0
    """How far the left one may be above the right one, in nats per token."""

    def judge(self, differences: Sequence[float]) -> Verdict:
        """Whether it holds, from the differences left minus right of equal seeds.

        It does where the whole interval is below the tolerance, does not where the whole interval
        is above, and cannot be told in between or from a single seed.
        """
        middle, half = interval(differences)
        half = inf if half is None else half
        if middle + half < self.tolerance:
            return "reproduced"
        return "not reproduced" if middle - half > self.tolerance else "cannot tell"

    def compare(self, left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
        """What a result file says of it, from the losses of both sides by seed."""
        pairs = zip(left, right, strict=False)  # of a run under way, one side may be a seed ahead
        differences = [round(one - other, 4) for one, other in pairs]
        return {
            "left": self.left,
            "right": self.right,
            "printed": self.printed,
            "tolerance": self.tolerance,
            "differences_by_seed": differences,
            "difference": interval(differences),
            "verdict": self.judge(differences),
        }


def shown(value: tuple[float, float | None], sign: str = "") -> str:
    """Mean ± half the interval: ``3.8712 ± 0.0040``."""
    middle, half = value
    return f"{middle:{sign}.4f}" + ("" if half is None else f" ± {half:.4f}")
