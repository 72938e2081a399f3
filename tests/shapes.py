"""Checks tensors against the letters that their names end in, whenever a function returns."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch

import moesaic
from moesaic.notation import AXES

PACKAGE = str(Path(moesaic.__file__).parent)
LETTERS = set(AXES) | {axis.lower() for axis in AXES}
SUFFIX = re.compile(r"_([a-z]|(?=[a-z]*[A-Z])[A-Za-z]+)$")  # load_e, ids_TK, w_eDF; not k_rope


@cache
def suffixed_names(code: CodeType, package: str) -> tuple[tuple[str, str], ...]:
    """Local names of a function of the package that end in axes, with those axes."""
    if not code.co_filename.startswith(package):
        return ()
    names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    matches = {name: SUFFIX.search(name) for name in names}
    return tuple(
        (name, match[1]) for name, match in matches.items() if match and set(match[1]) <= LETTERS
    )


def check(frame: FrameType, names: tuple[tuple[str, str], ...]) -> None:
    """Compare the tensors of a frame with their names and with one another.

    Raises:
        AssertionError: if a tensor has another number of axes than its name, or two tensors
            disagree about the size of one axis.
    """
    sizes: dict[str, tuple[int, str]] = {}
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
    values = frame.f_locals
    for name, axes in names:
        value = values.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        if len(axes) != value.ndim:
            raise AssertionError(f"{where}: {name} has shape {tuple(value.shape)}")
        for axis, size in zip(axes, value.shape, strict=True):
            first, by = sizes.setdefault(axis, (size, name))
            if first != size:
                raise AssertionError(f"{where}: {axis} is {size} in {name}, {first} in {by}")


@contextmanager
def checked_shapes(package: str = PACKAGE) -> Iterator[None]:
    """Check every function of the package that returns a value inside this block."""

    def on_event(frame: FrameType, event: str, arg: object) -> None:
        if event == "return" and arg is not None:
            names = suffixed_names(frame.f_code, package)
            if names:
                check(frame, names)

    outer = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(outer)
