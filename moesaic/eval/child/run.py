"""Runs a program, then its tests in the same names, and says so in a way it cannot guess.

The order comes through one pipe and the answer goes through another. After the order the pipe
holds a token of random bytes, which is read only when the last test has passed: until then it is
nowhere in the process's memory, and nothing that a program prints or returns can stand for it.
"""

import contextlib
import json
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

from moesaic.eval.child.confine import confine

_MODULE = "program"
_MOST_TOLD = 500


class _Text(SourceFileLoader):
    """Loads a module from a text instead of a file."""

    def __init__(self, text: str) -> None:
        super().__init__(_MODULE, f"<{_MODULE}>")
        self._text = text

    def get_data(self, path: str) -> bytes:
        """The text, whatever the path."""
        return self._text.encode()


def main() -> None:
    """Confine this process, run what the parent orders, and end."""
    orders, reports = int(sys.argv[1]), int(sys.argv[2])
    order = json.loads(_read(orders, int.from_bytes(_read(orders, 8))))
    isolation = confine(order["limits"], order["kernel"])
    sys.argv[1:] = []
    read, write, leave = os.read, os.write, os._exit  # the program may put others in their place
    write(reports, json.dumps(isolation).encode() + b"\n")
    printed = sys.stdout, sys.stderr
    mistake = _run(order["program"], order["tests"])
    for stream in printed:
        with contextlib.suppress(BaseException):
            stream.flush()
    write(reports, mistake.encode() if mistake else read(orders, order["token_bytes"]))
    leave(0)


def _read(pipe: int, size: int) -> bytes:
    """Exactly so many bytes, and none of those after them."""
    data = b""
    while len(data) < size:
        piece = os.read(pipe, size - len(data))
        if not piece:
            sys.exit("the order is cut short")
        data += piece
    return data


def _run(program: str, tests: str) -> str:
    """Run both; returns what went wrong."""
    module = sys.modules[_MODULE] = ModuleType(_MODULE)
    try:
        for text in (program, tests):
            _Text(text).exec_module(module)
        return ""
    except BaseException as error:  # leaving early with status 0 is no success
        return _describe(error)


def _describe(error: BaseException) -> str:
    """An exception in one line; its text may be the program's doing."""
    try:
        line = " ".join(f"{type(error).__name__}: {error}".split())
    except BaseException:
        line = "an exception that cannot be shown"
    return line.removesuffix(":")[:_MOST_TOLD].encode(errors="replace").decode()
