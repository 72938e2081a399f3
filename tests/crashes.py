"""Runs a training in a process of its own and kills it at a chosen moment, as SIGKILL does."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from moesaic.config.train import TrainConfig
from moesaic.train.loop import train

_WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def writes_of_a_run(config: TrainConfig) -> int:
    """How many times a whole run makes, opens, renames or removes something in its folder."""
    context = _context()
    counted: Any = context.Value("i", 0)
    _finish(context.Process(target=_count, args=(config, counted)))
    return counted.value


def crash_before_write(config: TrainConfig, number: int) -> int | None:
    """Run until just before write ``number``, counted from 1; returns the exit code."""
    return _finish(_context().Process(target=_crash, args=(config, number)))


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moesaic.train.loop", "torch._dynamo"])  # slow to import
    return context


def _finish(process: Any) -> int | None:
    process.start()
    process.join()
    return process.exitcode


def _count(config: TrainConfig, counted: Any) -> None:
    def count() -> None:
        counted.value += 1

    _watch(config, count)
    _train(config)


def _crash(config: TrainConfig, number: int) -> None:
    seen = [0]

    def crash() -> None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(config, crash)
    _train(config)


def _train(config: TrainConfig) -> None:
    import torch

    torch.set_num_threads(1)
    train(config)


def _watch(config: TrainConfig, then: Callable[[], None]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _WRITES and str(arguments[0]).startswith(config.folder):
            then()

    sys.addaudithook(hook)
