"""Bring the frozen experts of a layer to where they are computed with, while others compute.

Letters: e experts, D hidden, F expert width.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

Stacks = tuple[Tensor, Tensor]
"""Experts of a layer: gate and up [e, 2F, D], down [e, D, F]."""


class Source(Protocol):
    """Where the frozen experts of one layer are kept."""

    def on_cpu(self, room: Callable[[], Stacks]) -> Stacks:
        """They in the CPU's memory: where they lie, or read into ``room``."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """Kept in the CPU's memory; pinned, if a GPU computes with them."""

    stacks: Stacks

    def on_cpu(self, room: Callable[[], Stacks]) -> Stacks:
        """See `Source`."""
        return self.stacks


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Kept in a file, and read whenever they are needed."""

    read_into_: Callable[[Tensor, Tensor], None]

    def on_cpu(self, room: Callable[[], Stacks]) -> Stacks:
        """See `Source`."""
        stacks = room()
        self.read_into_(*stacks)
        return stacks


@dataclass(slots=True)
class Traffic:
    """What has been brought so far, and how long computing had to wait for it."""

    layers: int = 0
    """Times that the experts of a layer were brought."""
    missed: int = 0
    """How many of these were not expected, and so not begun before they were needed."""
    n_bytes: int = 0
    moving_s: float = 0.0
    """Time that bringing what was used took by itself."""
    waited_s: float = 0.0
    """Time that nothing could be computed because experts had not arrived."""

    @property
    def hidden(self) -> float:
        """Share of the moving that took place while others computed."""
        return max(0.0, 1.0 - self.waited_s / self.moving_s) if self.moving_s else 1.0


class Transfer(Protocol):
    """Fills stacks in the background, one layer after the other in the order of the calls."""

    def start(self, source: Source, stacks: Stacks) -> Future[Any]:
        """Begin to fill stacks, once all that has been asked of them so far is computed."""
        ...

    def finish(self, arriving: Future[Any]) -> None:
        """Let what is computed from now on find them filled.

        Raises:
            CheckpointError: if they could not be read.
        """
        ...

    @property
    def traffic(self) -> Traffic:
        """Counts since the start."""
        ...


class CpuTransfer:
    """Into stacks in the CPU's memory, by a thread that reads or copies."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._thread = ThreadPoolExecutor(1, "frozen-experts")

    def start(self, source: Source, stacks: Stacks) -> Future[float]:
        """See `Transfer`. What was asked of the stacks is computed when its call has returned."""
        _count(self.traffic, stacks)
        return self._thread.submit(_fill_, source, stacks)

    def finish(self, arriving: Future[float]) -> None:
        """See `Transfer`."""
        began = perf_counter()
        self.traffic.moving_s += arriving.result()
        self.traffic.waited_s += perf_counter() - began


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that has been asked for."""

    begun: torch.cuda.Event
    done: torch.cuda.Event
    read_s: float
    """Time until the experts were in the CPU's memory."""


class _EventClock:
    """Adds up the time between pairs of events; a pair counts once the device has passed it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def add(self, begun: torch.cuda.Event, done: torch.cuda.Event) -> None:
        self._pairs.append((begun, done))
        self.seconds()

    def seconds(self) -> float:
        while self._pairs and self._pairs[0][1].query():
            begun, done = self._pairs.popleft()
            self._seconds += begun.elapsed_time(done) / 1e3
        return self._seconds


class CudaTransfer:
    """Into a GPU's memory, on a stream of its own.

    Streams order their own work, and events order it between them. A copy into stacks waits for an
    event behind all that has been asked of the computing stream, so whatever read these stacks is
    done; the computing stream waits for an event behind the copy. The thread is there because disks
    are read, and pinned memory may have to be waited for, before a copy can be asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, "frozen-experts")
        self._traffic, self._read_s = Traffic(), 0.0
        self._moving, self._waited = _EventClock(), _EventClock()
        self._room: Stacks | None = None
        self._sent = torch.cuda.Event()  # behind the last copy

    def start(self, source: Source, stacks: Stacks) -> Future[_Copy]:
        """See `Transfer`."""
        _count(self._traffic, stacks)
        free = _mark(torch.cuda.current_stream(self._device))
        return self._thread.submit(self._copy, source, stacks, free)

    def finish(self, arriving: Future[_Copy]) -> None:
        """See `Transfer`. The caller waits for the disk, the computing stream for the copy."""
        stream = torch.cuda.current_stream(self._device)
        before = _mark(stream)
        copy = arriving.result()
        stream.wait_event(copy.done)
        self._waited.add(before, _mark(stream))
        self._moving.add(copy.begun, copy.done)
        self._read_s += copy.read_s

    @property
    def traffic(self) -> Traffic:
        """See `Transfer`. The times are complete once the device has been waited for."""
        self._traffic.moving_s = self._read_s + self._moving.seconds()
        self._traffic.waited_s = self._waited.seconds()
        return self._traffic

    def _copy(self, source: Source, stacks: Stacks, free: torch.cuda.Event) -> _Copy:
        began = perf_counter()
        pinned = source.on_cpu(lambda: self._pinned_room(stacks))
        read_s = perf_counter() - began
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            begun = _mark(self._stream)
            for room, experts in zip(stacks, pinned, strict=True):
                room.copy_(experts, non_blocking=True)
                room.record_stream(self._stream)  # so its memory outlives a copy under way
            done = _mark(self._stream)
        self._sent = done
        return _Copy(begun, done, read_s)

    def _pinned_room(self, like: Stacks) -> Stacks:
        """Pinned memory for as many experts, when no copy reads from it any more."""
        self._sent.synchronize()
        n_experts = len(like[0])
        if self._room is None or len(self._room[0]) < n_experts:
            self._room = empty_stacks(n_experts, like, like[0].dtype, "cpu", pinned=True)
        gate_up, down = self._room
        return gate_up[:n_experts], down[:n_experts]


def empty_stacks(
    n_experts: int,
    like: Stacks,
    dtype: torch.dtype,
    device: torch.device | str,
    pinned: bool = False,
) -> Stacks:
    """Room for experts as wide as those of ``like``.

    From pinned memory of the CPU a GPU copies while it computes. Both stacks are one allocation: of
    pinned memory the framework takes the next power of two, 1.07 GB for the 0.97 GB of a layer of
    DeepSeek-V2-Lite, and 1.61 GB for two of 0.65 and 0.32.
    """
    shapes = [(n_experts, *x.shape[1:]) for x in like]
    sizes = [prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes), dtype=dtype, device=device, pin_memory=pinned)
    gate_up, down = (
        part.view(shape) for part, shape in zip(memory.split(sizes), shapes, strict=True)
    )
    return gate_up, down


def transfer_to(device: torch.device) -> Transfer:
    """What brings experts to a device."""
    return CudaTransfer(device) if device.type == "cuda" else CpuTransfer()


def _fill_(source: Source, stacks: Stacks) -> float:
    """Fill stacks in the CPU's memory; returns how long it took, in seconds."""
    began = perf_counter()
    found = source.on_cpu(lambda: stacks)
    for room, experts in zip(stacks, found, strict=True):
        if room is not experts:
            room.copy_(experts)
    return perf_counter() - began


def _count(traffic: Traffic, stacks: Stacks) -> None:
    traffic.layers += 1
    traffic.n_bytes += sum(stack.nbytes for stack in stacks)


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event behind all that a stream has been asked for; events of a stream tell the time."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream)
    return event
