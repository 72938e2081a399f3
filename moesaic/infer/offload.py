"""`ExpertCache`: the hottest experts of all layers in a bounded memory, the others on disk.

Letters: E experts of a layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import RLock
from time import perf_counter

import torch

from moesaic.kernels.native.pack import Rows
from moesaic.units import count, duration, gb, gib

Expert = tuple[int, int]
"""A layer and an expert of it."""
ReadExpert = Callable[[int, int, Rows, Rows], None]
"""Fills the rows of gate and up, and those of down, with an expert of a layer."""

_HALF_LIFE = 64
"""Passes after which a use counts half."""
_READERS = 2
"""Experts that are read at the same time."""
_COOLEST = 1e-200
_HOTTEST = 1e200
"""Beyond this all heat is made less, so that no number runs over."""


@dataclass(slots=True)
class ExpertCounts:
    """What a cache of experts did, in numbers that only grow."""

    asked: int = 0
    """Experts that passes needed, each once per layer and pass."""
    held: int = 0
    """Those that were there."""
    guessed: int = 0
    """Experts that were begun to be read on a guess."""
    useful: int = 0
    """Those of them that were needed in the pass they were read for."""
    read: int = 0
    """Experts that were read, on a guess or not."""
    bytes_read: int = 0
    """Their size as they are held."""
    waited_s: float = 0.0
    """Seconds that nothing could be computed because experts had not arrived."""

    @property
    def hit_rate(self) -> float:
        """Share of the needed experts that were there; 1 before any was needed."""
        return self.held / self.asked if self.asked else 1.0


class ExpertCache:
    """Slots for experts of any layer, all of one shape, and a thread or two that fill them.

    Where a slot is needed, the expert that is used least gives up its own: uses count half after
    64 passes, so what a text needs now displaces what an earlier one needed. An expert that has to
    wait for the disk costs the same whichever it is, and the layers are needed in turn, so that the
    one used longest ago would often be the one needed next.

    An expert that a layer is guessed to need is read while the layer before it computes, into a
    slot that nothing in use lies in. A wrong guess that was not begun is dropped.

    Source: Lee et al. 2001 (LRFU, IEEE Transactions on Computers 50, 12) for the decay; Eliseev and
    Mazur 2023 (arXiv 2312.17238) section 3.2 for reading ahead.
    """

    def __init__(
        self, experts: Mapping[int, int], rows_in: Rows, rows_out: Rows, n: int, read: ReadExpert
    ) -> None:
        """Take slots; nothing is read yet.

        Args:
            experts: how many each layer has.
            rows_in: memory of all slots for gate and up.
            rows_out: the same for down.
            n: how many slots these are.
            read: fills a slot; it is called by several threads.
        """
        self.rows_in, self.rows_out, self.n_slots = rows_in, rows_out, n
        self.counts = ExpertCounts()
        self.lock = RLock()
        """Held by whoever computes with experts, from asking for them until they were used."""
        self.slots = {
            layer: torch.full((e,), -1, dtype=torch.int32) for layer, e in experts.items()
        }
        """Of each layer the slot of every expert, int32 [E]; -1 for those that are not here."""
        self._read = read
        self._threads = ThreadPoolExecutor(_READERS, "moesaic-experts")
        self._holder: list[Expert | None] = [None] * n
        self._places: dict[Expert, int] = {}
        self._heat = {layer: [0.0] * e for layer, e in experts.items()}
        self._slot_heat = [-1.0] * n
        self._gain, self._layer = 1.0, -1
        self._arriving: dict[int, Future[None]] = {}
        self._guessed: set[int] = set()
        self._in_use: set[int] = set()

    @property
    def n_bytes(self) -> int:
        """Memory of all slots."""
        return self.rows_in.n_bytes + self.rows_out.n_bytes

    @property
    def n_experts(self) -> int:
        """Experts of all layers."""
        return sum(map(len, self.slots.values()))

    def figures(self) -> dict[str, float]:
        """What it holds and did, under the names of `ExpertCounts`."""
        sizes = {"slots": self.n_slots, "experts": self.n_experts, "bytes": self.n_bytes}
        return {**sizes, **asdict(self.counts), "hit_rate": self.counts.hit_rate}

    def told(self) -> str:
        """The same for a terminal."""
        did = self.counts
        return (
            f"experts: {self.n_slots} of {self.n_experts} held in {gib(self.n_bytes)} | "
            f"there when needed {did.hit_rate:.1%} of {count(did.asked)} | "
            f"read {gb(did.bytes_read)} | {did.useful} of {did.guessed} guesses were needed | "
            f"waited {duration(did.waited_s)}"
        )

    def need(self, layer: int, uses: Mapping[int, int], guess: Iterable[int] = ()) -> None:
        """Have experts of a layer in slots; they stay until the next call.

        Args:
            layer: which.
            uses: the experts, and the tokens of each; no more than there are slots.
            guess: experts that the next layer may need.

        Raises:
            CheckpointError: if one cannot be read.
        """
        assert len(uses) <= self.n_slots
        self._begin_layer(layer, uses)
        places = {expert: self._places.get((layer, expert)) for expert in uses}
        self._in_use = {slot for slot in places.values() if slot is not None}
        self._drop_wrong_guesses()
        for expert, slot in places.items():
            if slot is None:
                self._in_use.add(self._start(layer, expert))
            elif slot in self._guessed:
                self._guessed.remove(slot)
                self.counts.useful += 1
            else:
                self.counts.held += 1
        for expert in guess if layer + 1 in self.slots else ():
            slot = self._start_if_room(layer + 1, expert)
            if slot is not None:
                self._guessed.add(slot)
                self.counts.guessed += 1
        self._finish(*sorted(self._in_use & self._arriving.keys()))

    def each(self, layer: int, uses: Mapping[int, int]) -> Iterator[tuple[int, Rows, Rows]]:
        """Experts of a layer, however many, one after the other: those that are here come first.

        Each is in its slot until the next is asked for.

        Raises:
            CheckpointError: if one cannot be read.
        """
        self._begin_layer(layer, uses)
        self._in_use = set()
        self._drop_wrong_guesses()
        here = [expert for expert in uses if (layer, expert) in self._places]
        order = [*here, *(expert for expert in uses if (layer, expert) not in self._places)]
        self.counts.held += len(here)
        for place, expert in enumerate(order):
            following = max(place + 1, len(here))
            ahead = order[following : following + _READERS]
            kept = (expert, *order[place + 1 : len(here)], *ahead)
            found = (self._places.get((layer, each)) for each in kept)
            self._in_use = {slot for slot in found if slot is not None}
            slot = self._places.get((layer, expert))
            if slot is None:
                slot = self._start(layer, expert)
            self._in_use.add(slot)
            for each in ahead:
                started = self._start_if_room(layer, each)
                self._in_use |= set() if started is None else {started}
            self._finish(*{slot} & self._arriving.keys())
            yield expert, *self.expert_rows(slot)

    def expert_rows(self, slot: int) -> tuple[Rows, Rows]:
        """Gate and up, and down, of what is in a slot."""
        n_in, n_out = (len(rows.values) // self.n_slots for rows in (self.rows_in, self.rows_out))
        return (
            self.rows_in.part(slot * n_in, (slot + 1) * n_in),
            self.rows_out.part(slot * n_out, (slot + 1) * n_out),
        )

    def _begin_layer(self, layer: int, uses: Mapping[int, int]) -> None:
        """Count uses; the first layer again begins a new pass."""
        self.counts.asked += len(uses)
        if layer <= self._layer:
            self._gain *= 2 ** (1 / _HALF_LIFE)
            if self._gain > _HOTTEST:
                self._cool()
        self._layer, heat = layer, self._heat[layer]
        for expert, n in uses.items():
            heat[expert] += n * self._gain
            slot = self._places.get((layer, expert))
            if slot is not None:
                self._slot_heat[slot] = heat[expert]

    def _cool(self) -> None:
        """Make all heat less by one factor, which changes no order."""
        for layer, heat in self._heat.items():
            self._heat[layer] = [each * _COOLEST for each in heat]
        self._slot_heat = [each * _COOLEST for each in self._slot_heat]
        self._gain *= _COOLEST

    def _start_if_room(self, layer: int, expert: int) -> int | None:
        """Begin to read an expert; its slot, or None if it is here or no slot is to be had."""
        slot = None if (layer, expert) in self._places else self._coldest()
        if slot is not None:
            self._fill(slot, layer, expert)
        return slot

    def _start(self, layer: int, expert: int) -> int:
        """Begin to read an expert; its slot."""
        slot = self._coldest()
        while slot is None:  # guesses that turned out wrong are still being read
            self._let_go(next(each for each in self._arriving if each not in self._in_use))
            slot = self._coldest()
        self._fill(slot, layer, expert)
        return slot

    def _coldest(self) -> int | None:
        """The slot whose expert is used least, of those that nothing reads or fills."""
        busy = self._in_use | self._arriving.keys()
        idle = (slot for slot in range(self.n_slots) if slot not in busy)
        return min(idle, key=self._slot_heat.__getitem__, default=None)

    def _fill(self, slot: int, layer: int, expert: int) -> None:
        self._forget(slot)
        self._holder[slot] = layer, expert
        self._places[layer, expert] = slot
        self.slots[layer][expert] = slot
        self._slot_heat[slot] = self._heat[layer][expert]
        rows = self.expert_rows(slot)
        self._arriving[slot] = self._threads.submit(self._read, layer, expert, *rows)
        self.counts.read += 1
        self.counts.bytes_read += sum(each.n_bytes for each in rows)

    def _finish(self, *slots: int) -> None:
        """Wait for what is on its way to some slots; if that fails, nothing is on its way."""
        began = perf_counter()
        try:
            for slot in slots:
                self._arriving[slot].result()
                del self._arriving[slot]
        except BaseException:
            for slot in list(self._arriving):
                self._abandon(slot)
            raise
        finally:
            self.counts.waited_s += perf_counter() - began

    def _abandon(self, slot: int) -> None:
        """Give up what is on its way to a slot, which stays taken while it is being read."""
        if self._arriving[slot].done() or self._arriving[slot].cancel():
            del self._arriving[slot]
        self._forget(slot)

    def _drop_wrong_guesses(self) -> None:
        """Guesses that nobody needs now: those that were not begun are given up."""
        for slot in [each for each in self._guessed if each not in self._in_use]:
            self._guessed.remove(slot)
            if slot in self._arriving and self._arriving[slot].cancel():
                del self._arriving[slot]
                self.counts.read -= 1
                self.counts.guessed -= 1
                self.counts.bytes_read -= sum(each.n_bytes for each in self.expert_rows(slot))
                self._forget(slot)
        for slot in [each for each, future in self._arriving.items() if future.done()]:
            if slot not in self._in_use:
                self._let_go(slot)

    def _let_go(self, slot: int) -> None:
        """Wait for a guess that nobody needs now; what could not be read is forgotten."""
        if self._arriving.pop(slot).exception() is not None:
            self._forget(slot)

    def _forget(self, slot: int) -> None:
        """Nothing is in a slot any more."""
        holder, self._holder[slot] = self._holder[slot], None
        if holder is not None:
            del self._places[holder]
            self.slots[holder[0]][holder[1]] = -1
        self._slot_heat[slot] = -1.0
        self._guessed.discard(slot)
