"""`Curve`: a number that changes over a run (rates, batch size, loss weight, bias speed)."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, model_validator

from moesaic.config.settings import Settings

_MOMENT = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) *(?:([kMBT])? *(steps|tokens)|(%))")
_FACTORS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

Unit = Literal["steps", "tokens", "%"]


def parse_moment(text: str) -> tuple[float, Unit]:
    """Amount and unit of a moment of a run: ``2000 steps``, ``10T tokens``, ``80%`` of the steps.

    Raises:
        ValueError: if the text is none of these.
    """
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            "not a moment of a run; write it as '2000 steps', '10T tokens' or '80%' of the steps"
        )
    amount, factor, unit, percent = match.groups()
    if percent:
        if float(amount) > 100:
            raise ValueError("later than the end of the run; give 100% or less")
        return float(amount), "%"
    return float(amount) * _FACTORS.get(factor, 1.0), "tokens" if unit == "tokens" else "steps"


def _check_moment(text: str) -> str:
    parse_moment(text)
    return text


Moment = Annotated[str, AfterValidator(_check_moment)]


class Change(Settings):
    """One change of a value: at once, or little by little."""

    at: Moment
    """When it begins: ``"2000 steps"``, ``"10T tokens"`` or ``"80%"`` of the steps."""
    until: Moment | None = None
    """When it is complete, in the unit of `at`; None changes at once."""
    to: NonNegativeFloat | None = None
    """The value afterwards; give this or `times`."""
    times: NonNegativeFloat | None = None
    """What the value before is multiplied by; give this or `to`."""
    shape: Literal["linear", "cosine"] | None = None
    """Way from `at` to `until`; None with `until` means linear."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.to is None) == (self.times is None):
            raise ValueError("a change needs either 'to' or 'times'; give one of them")
        if self.until is None:
            if self.shape is not None:
                raise ValueError(f"shape={self.shape!r} needs 'until'; add it, or remove the shape")
            return self
        start, unit = parse_moment(self.at)
        end, end_unit = parse_moment(self.until)
        if unit != end_unit:
            raise ValueError(
                f"at={self.at!r} and until={self.until!r} differ in unit; give both in {unit}"
            )
        if end <= start:
            raise ValueError(f"until={self.until!r} is not after at={self.at!r}; swap or move them")
        return self


class Curve(Settings):
    """A value over the run. A plain number in a run file is a curve that stays there."""

    start: NonNegativeFloat
    """Value at the first step."""
    changes: Annotated[tuple[Change, ...], Field(strict=False)] = ()
    """What changes, in order of time."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, data: Any) -> Any:
        is_number = isinstance(data, int | float) and not isinstance(data, bool)
        return {"start": float(data)} if is_number else data

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        for earlier, later in zip(self.changes, self.changes[1:], strict=False):
            begin, unit = parse_moment(earlier.until or earlier.at)
            then, then_unit = parse_moment(later.at)
            if unit == then_unit and then < begin:
                raise ValueError(
                    f"the change at {later.at!r} begins before the one that ends at "
                    f"{earlier.until or earlier.at!r}; put the changes in order of time"
                )
        return self


class ScheduleConfig(Settings):
    """Learning rate and length of a run, and how fast it starts.

    Source: DeepSeekMoE (arXiv 2401.06066) section 5.1.2 for linear warm-up and steps down;
    DeepSeek-V3 (arXiv 2412.19437) section 4.2 for warm-up, constant, cosine, constant, drop.
    """

    learning_rate: Curve
    """Rate after warm-up; a number, or a start with changes."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises in equal parts to its full value; step n of w has n/w."""
