"""Measures what a piece of work has in memory, by the framework's own record of allocations."""

import gc
from collections.abc import Callable
from itertools import accumulate

from torch.autograd.profiler import profile


def most_allocated(work: Callable[[], object]) -> int:
    """Most bytes of tensors on the CPU that ``work`` has at a time, beside what was there before.

    Counted are all that torch allocates, also inside operations and in the backward pass.
    """
    gc.collect()  # what an earlier work left over would be freed in this one
    with profile(profile_memory=True) as seen:
        work()
    assert seen is not None
    assert seen.kineto_results is not None
    events = [e for e in seen.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events]  # pyright: ignore[reportAttributeAccessIssue]
    return max(accumulate(changes), default=0)
