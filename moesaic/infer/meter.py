"""`Meter`: what a `BatchEngine` has done, in numbers that only grow."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from moesaic.infer.expert_load import LayerLoad
from moesaic.infer.offload import ExpertCounts
from moesaic.infer.pace import Counts

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Histogram:
    """How many of some durations lie up to each border."""

    borders: Sequence[float] = _SECONDS
    counts: list[int] = field(default_factory=list)
    """Of each border alone, and of what is above the last."""
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.borders) + 1)

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.borders, value)] += 1
        self.total += value


@dataclass(slots=True)
class Meter:
    """Counts since the engine began."""

    first_s: Histogram = field(default_factory=Histogram)
    """Seconds from a request to its first token."""
    between_s: Histogram = field(default_factory=Histogram)
    """Seconds from a token to the next."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by how they ended."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens: of prompts, of these found computed, drawn, and computed again."""
    drafts: Counts = field(default_factory=Counts)
    """What drafts came to, in all texts together."""
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine at one moment."""

    waiting: int
    running: int
    blocks: int
    blocks_free: int
    """Blocks that a new request could have, those of kept prefixes among them."""
    blocks_kept: int
    """Blocks of prefixes."""
    meter: Meter
    """What was done so far; it goes on counting."""
    experts: ExpertCounts | None = None
    """What the cache of experts did; None where all experts are held."""
    load: tuple[LayerLoad, ...] = ()
    """What experts received, by layer, where it is counted."""
