"""Runs a piece of work on tensors without values and counts what would be in memory.

Only sizes, types and devices are computed, so that a step of a full-size model takes seconds and no
memory. What an operation allocates inside, and frees before it returns, is not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig

_BLOCK = 512
"""Allocations are multiples of this many bytes, as on a GPU."""


def most_traced(work: Callable[[], object], learned: int) -> int:
    """Most bytes of tensors that ``work`` would have at a time.

    Args:
        work: it begins with no tensors.
        learned: how many positions a batch of it learns, which no tensor without values tells.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Storages(learned) as seen, _NoValues():
        work()
    return seen.most


class UnwrittenCheckpoint(Reader):
    """A checkpoint in bfloat16 of which nothing exists: reading it leaves everything as it is."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.folder = config, Path("unwritten")

    def locate(self, name: str) -> Any:
        return SimpleNamespace(dtype=torch.bfloat16, path=self.folder, start=0)

    def read_into_(self, out: Tensor, name: str) -> None: ...


class _Storages(TorchDispatchMode):
    """Counts the memory of what operations return, for as long as it lives."""

    def __init__(self, learned: int) -> None:
        super().__init__()
        self.most = self._now = 0
        self._learned, self._seen = learned, dict[int, Any]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.nonzero.default:
            found = args[0].new_empty((self._learned, 1), dtype=torch.int64)
        elif func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 0  # every condition holds, every number is 0
        else:
            found = func(*args, **(kwargs or {}))
        for one in tree_iter(found):
            if isinstance(one, FakeTensor):
                self._note(one)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, n_bytes = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._seen:
            return

        def forget(_: object) -> None:
            self._now -= n_bytes
            del self._seen[key]

        self._seen[key] = ref(storage, forget)
        self._now += n_bytes
        self.most = max(self.most, self._now)


class _NoValues(TorchFunctionMode):
    """Lists of values are ones."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.tolist:
            return [1.0] * args[0].numel()
        return func(*args, **(kwargs or {}))
