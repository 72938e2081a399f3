"""`Pace`: whether drafts gain time, and `Counts`: what they came to."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

_TRIAL = 16
"""Passes with drafts, and as many without, before it is judged whether drafts gain time."""
_FEWEST = 3
"""The same where drafts would lose even if every one of them were right."""
_AGAIN = 32
"""Passes with drafts after which one without is timed again: all grow slower as a text grows. The
latest `_FEWEST` of these are then compared with."""
_LATEST = 64
"""Passes with drafts that tell how often these are right."""


@dataclass(slots=True)
class Counts:
    """What drafts came to."""

    passes: int = 0
    """Passes in which the model was fed one token that was decided, with a draft or without."""
    tokens: int = 0
    """Tokens that they gave."""
    drafts: int = 0
    """Drafts that were checked."""
    accepted: int = 0
    """Drafts that were kept."""

    @property
    def acceptance(self) -> float:
        """Share of the drafts that were kept; 0 without drafts."""
        return self.accepted / max(1, self.drafts)

    @property
    def tokens_per_pass(self) -> float:
        """1 without drafts, 2 where every one is kept."""
        return self.tokens / max(1, self.passes)


@dataclass(slots=True)
class Pace:
    """Whether drafts gain time, as measured.

    The first passes are made without a draft and with one in turn. If drafts lose in this trial,
    they end. Otherwise they are made in every pass, except that at times one is made without, to
    know what that takes now. When they seem to lose there is another trial: what is compared by
    turns a busy machine slows down alike.

    Where reading weights bounds a pass, two tokens read more experts than one, and even a good
    draft may lose; where a call of the framework takes longer than what it computes, two tokens
    take hardly longer than one.
    """

    may_stop: bool
    """Whether drafts end where they gain no time; without it every pass is one with drafts."""
    is_on: bool = True
    """Whether there are drafts still."""
    has_gained: bool = False
    """Whether drafts gained time in the latest trial."""
    plain_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TRIAL))
    """Seconds of the latest passes without drafts."""
    drafted_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TRIAL))
    """Seconds of the latest passes with drafts, and of making these."""
    further: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))
    """Tokens that a text got besides one in the latest passes with drafts."""
    tried: tuple[int, int] = (0, 0)
    """Passes without drafts, and with them, since the latest trial began."""
    since_plain: int = 0
    """Passes with drafts after the latest one without."""

    @property
    def cost(self) -> float:
        """Median time of a pass with drafts over that of one without."""
        return median(self.drafted_s) / median(self.plain_s)

    @property
    def gain(self) -> float:
        """Speed with drafts over speed without: tokens of a text in a pass with drafts, over its
        cost."""
        return (1 + fmean(self.further)) / self.cost

    @property
    def loses(self) -> bool:
        """Whether it is known that drafts gain no time."""
        if self.is_trial:
            return min(self.tried) >= _FEWEST and self.cost > 2
        return self.gain < 1

    @property
    def is_trial(self) -> bool:
        """Whether it is too early to judge."""
        return min(self.tried) < _TRIAL

    @property
    def is_plain_turn(self) -> bool:
        """Whether the next pass is one without drafts."""
        if not (self.is_on and self.may_stop):
            return not self.is_on
        if self.is_trial:
            return self.tried[0] <= self.tried[1]
        return self.since_plain >= _AGAIN

    def add(self, seconds: float, further: Sequence[int] | None) -> None:
        """Count a pass.

        Args:
            seconds: that it took, with what was drafted for it.
            further: of each text the tokens that it gave besides one; None if nothing was drafted.
        """
        if further is None:
            while not self.is_trial and len(self.plain_s) >= _FEWEST:
                self.plain_s.popleft()
            self.plain_s.append(seconds)
            self.tried, self.since_plain = (self.tried[0] + 1, self.tried[1]), 0
        else:
            self.drafted_s.append(seconds)
            self.further.append(fmean(further))
            self.tried = self.tried[0], self.tried[1] + 1
            self.since_plain += 1
        if self.may_stop:
            self._judge()

    def _judge(self) -> None:
        """End drafts that lost in a trial; those that seem to lose later are tried again."""
        if not self.loses:
            self.has_gained = not self.is_trial
        elif self.has_gained:
            self.plain_s.clear()
            self.drafted_s.clear()
            self.has_gained, self.tried = False, (0, 0)
        else:
            self.is_on = False
