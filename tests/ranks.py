"""Runs a function in several processes that form one group."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def on_ranks(work: Callable[[int], Any], world_size: int, folder: Path) -> list[Any]:
    """What ``work(rank)`` returns on each rank; ``work`` is a function of a module."""
    context = multiprocessing.get_context("forkserver")
    with context.Pool(world_size) as pool:
        asked = [(work, rank, world_size, str(folder / "meeting")) for rank in range(world_size)]
        return pool.starmap(_join, asked, chunksize=1)


def _join(work: Callable[[int], Any], rank: int, world_size: int, meeting: str) -> Any:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    try:
        return work(rank)
    finally:
        dist.destroy_process_group()


def loads_of(rank: int) -> dict[int, list[int]]:
    """Loads that differ by rank, summed over the ranks."""
    import torch

    from moesaic.balance.bias import sum_over_ranks

    loads = {1: torch.tensor([1, 2]), 2: torch.tensor([3, 4 + rank])}
    return {layer: load_E.tolist() for layer, load_E in sum_over_ranks(loads).items()}
