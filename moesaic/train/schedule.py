"""Values of a `Curve` at a moment of a run: learning rate, batch rows, loss weight, bias speed."""

from dataclasses import dataclass
from math import cos, pi

from moesaic.config.schedule import Change, Curve, ScheduleConfig, parse_moment


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is: what was done before the step that is next."""

    step: int
    """Steps done."""
    tokens: int
    """Tokens fed in those steps, over all ranks."""
    steps: int
    """Steps of the whole run."""

    def in_unit_of(self, moment: str) -> float:
        """This position on the scale that ``moment`` is written in."""
        unit = parse_moment(moment)[1]
        if unit == "%":
            return 100 * self.step / self.steps
        return self.tokens if unit == "tokens" else self.step


def value_at(curve: Curve, position: Position) -> float:
    """The curve's value for the step that is next.

    A change that has not begun leaves those after it waiting. A gradual change goes from the value
    before it, in a straight line or along half a cosine.
    """
    value = curve.start
    for change in curve.changes:
        share = _share_done(change, position)
        if share is None:
            break
        target = change.to if change.to is not None else value * (change.times or 0)
        if share < 1:
            return value + (target - value) * share
        value = target
    return value


def learning_rate(schedule: ScheduleConfig, position: Position) -> float:
    """Learning rate of the step that is next, warm-up included.

    Source: DeepSeekMoE (arXiv 2401.06066) section 4.1.3: linear from 0 to the full rate over the
    warm-up, here so that the last warm-up step has the full rate and none has rate 0.
    """
    rate = value_at(schedule.learning_rate, position)
    if position.step < schedule.warmup_steps:
        rate *= (position.step + 1) / schedule.warmup_steps
    return rate


def _share_done(change: Change, position: Position) -> float | None:
    """How much of a change is done, 1 for all of it; None if it has not begun."""
    now, begin = position.in_unit_of(change.at), parse_moment(change.at)[0]
    if now < begin:
        return None
    if change.until is None:
        return 1.0
    share = min(1.0, (now - begin) / (parse_moment(change.until)[0] - begin))
    return (1 - cos(pi * share)) / 2 if change.shape == "cosine" else share
