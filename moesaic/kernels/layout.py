"""Where token-expert pairs lie while the experts compute: rows of one expert together.

Two forms of one idea. `SortedLayout` has exactly one row per pair, for products compiled here or
the framework's grouped matmul. `TieredLayout` serves bfloat16 on a CPU without compiled products,
where the framework spends more on a call per expert than on its products, and compiles every new
shape: every expert gets the same number of rows, so that one batched matmul serves all of them, and
the rest of the busiest experts rows of their own.

Letters: T tokens, D hidden, K experts per token, P token-expert pairs, e resident experts.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.native import panels

_STEP = 32
"""Heights are multiples of this many rows."""
_READ_ROWS = 20
"""In a batched matmul, reading an expert's matrix takes as long as about this many rows of it."""
_CALL_ROWS = 100
"""The same in a matmul of its own, which also brings the matrix into another order first."""
_CALL_FLOPS = 10_000_000
"""Starting a matmul takes as long as about this many operations inside one."""
_COLUMNS = 256
"""A gradient that is added to another is computed a quarter at a time, but never fewer columns than
this: smaller products would read the rows from memory more often than they can be multiplied."""


class Layout(Protocol):
    """An arrangement of pairs in rows, and the products over it."""

    @property
    def token_of_row(self) -> Tensor:
        """[rows] token a row is copied from; any token for padding."""
        ...

    @property
    def row_TK(self) -> Tensor:
        """Row of each pair."""
        ...

    def matmul(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each row times its expert's matrix: [rows, a] and [e, a, b] to [rows, b].

        The matrices are cast to the dtype of the rows.
        """
        ...

    def outer(self, left: Tensor, right: Tensor, n_experts: int, dtype: torch.dtype) -> Tensor:
        """Sum of outer products over each expert's rows: [rows, a], [rows, b] to [n, a, b], of the
        first ``n_experts`` only."""
        ...

    def add_outer(self, left: Tensor, right: Tensor, sums: Tensor) -> None:
        """`outer` added to what is in ``sums``, [n, a, b]."""
        ...


@dataclass(frozen=True, slots=True)
class SortedLayout:
    """One row per pair, sorted by expert."""

    token_of_row: Tensor
    row_TK: Tensor
    ends_e: Tensor
    """int32, row after the last of each expert."""

    @classmethod
    def of(cls, slots_TK: Tensor, n_experts: int) -> "SortedLayout":
        """Sort the pairs, without waiting for the device."""
        sorted_P, order_P = torch.sort(slots_TK.flatten(), stable=True)
        experts_e = torch.arange(n_experts, device=slots_TK.device)
        ends_e = torch.searchsorted(sorted_P, experts_e, right=True, out_int32=True)
        places_P = torch.arange(len(order_P), device=order_P.device)
        row_P = torch.empty_like(order_P).scatter_(0, order_P, places_P)
        return cls(order_P // slots_TK.shape[1], row_P.view_as(slots_TK), ends_e)

    def matmul(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """See `Layout`."""
        if panels.serve(rows, matrices):
            out = rows.new_empty(len(rows), matrices.shape[2])
            return panels.multiply_rows(rows, matrices, self.ends_e, out)
        return F.grouped_mm(rows, matrices.to(rows.dtype), offs=self.ends_e)

    def outer(self, left: Tensor, right: Tensor, n_experts: int, dtype: torch.dtype) -> Tensor:
        """See `Layout`."""
        if panels.serve(left, right) and dtype in panels.DTYPES:
            out = left.new_empty(n_experts, left.shape[1], right.shape[1], dtype=dtype)
            return panels.multiply_columns(left, right, self.ends_e[:n_experts], out)
        return F.grouped_mm(left.t(), right, offs=self.ends_e[:n_experts]).to(dtype)

    def add_outer(self, left: Tensor, right: Tensor, sums: Tensor) -> None:
        """See `Layout`."""
        if panels.serve(left, right) and sums.dtype in panels.DTYPES:
            panels.multiply_columns(left, right, self.ends_e[: len(sums)], sums, adds=True)
        else:
            _add_in_pieces(self, left, right, sums)


@dataclass(frozen=True, slots=True)
class TieredLayout:
    """``height`` rows for every expert, then further rows for those with more pairs."""

    token_of_row: Tensor
    row_TK: Tensor
    n_experts: int
    height: int
    further: tuple[tuple[int, int, int], ...]
    """Expert, first row and row after the last of each further group."""

    @classmethod
    def of(cls, slots_TK: Tensor, n_experts: int, row_flops: int) -> "TieredLayout":
        """Arrange the pairs for the least estimated time.

        Args:
            slots_TK: resident expert of each pair.
            n_experts: how many are resident.
            row_flops: operations of one row in one product.
        """
        slots_P, device = slots_TK.flatten(), slots_TK.device
        counts_e = torch.bincount(slots_P, minlength=n_experts)
        height = _best_height(counts_e, _CALL_FLOPS // row_flops)
        base = n_experts * height
        more_e = _padded((counts_e - height).clamp_(min=0))
        ends_e = base + more_e.cumsum(0)
        starts_e = ends_e - more_e
        # The r-th pair of an expert lies in its base rows while there are any, then in its further.
        order_P = torch.sort(slots_P.to(torch.int32), stable=True).indices
        slot_P, places_P = (
            slots_P.index_select(0, order_P),
            torch.arange(len(slots_P), device=device),
        )
        rank_P = places_P - (counts_e.cumsum(0) - counts_e).index_select(0, slot_P)
        further_row_P = starts_e.index_select(0, slot_P) + rank_P - height
        sorted_row_P = torch.where(rank_P < height, slot_P * height + rank_P, further_row_P)
        row_P = torch.empty_like(order_P).scatter_(0, order_P, sorted_row_P)
        token_of_row = torch.zeros(int(ends_e[-1]), dtype=torch.int64, device=device)
        token_of_row.scatter_(0, row_P, places_P // slots_TK.shape[1])
        groups = zip(range(n_experts), starts_e.tolist(), ends_e.tolist(), strict=True)
        further = tuple((slot, start, end) for slot, start, end in groups if end > start)
        return cls(token_of_row, row_P.view_as(slots_TK), n_experts, height, further)

    def matmul(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """See `Layout`."""
        out = rows.new_empty(rows.shape[0], matrices.shape[2])
        if self.height:
            torch.bmm(self._base(rows), matrices.to(rows.dtype), out=self._base(out))
        for slot, start, end in self.further:
            torch.mm(rows[start:end], matrices[slot].to(rows.dtype), out=out[start:end])
        return out

    def outer(self, left: Tensor, right: Tensor, n_experts: int, dtype: torch.dtype) -> Tensor:
        """See `Layout`."""
        if self.height:
            lefts, rights = self._base(left)[:n_experts], self._base(right)[:n_experts]
            out = torch.bmm(lefts.transpose(1, 2), rights).to(dtype)
        else:
            shape = (n_experts, left.shape[1], right.shape[1])
            out = torch.zeros(shape, dtype=dtype, device=left.device)
        for slot, start, end in self.further:
            if slot < n_experts:
                out[slot] += left[start:end].t() @ right[start:end]
        return out

    def add_outer(self, left: Tensor, right: Tensor, sums: Tensor) -> None:
        """See `Layout`."""
        _add_in_pieces(self, left, right, sums)

    def _base(self, rows: Tensor) -> Tensor:
        """The rows every expert has, [e, height, …]."""
        return rows[: self.n_experts * self.height].unflatten(0, (self.n_experts, self.height))


def _add_in_pieces(layout: Layout, left: Tensor, right: Tensor, sums: Tensor) -> None:
    n_experts, columns, _ = sums.shape
    width = -(-columns // (4 * _COLUMNS)) * _COLUMNS
    for part, some in zip(left.split(width, dim=1), sums.split(width, dim=1), strict=True):
        some.add_(layout.outer(part, right, n_experts, left.dtype))


def _padded(rows: Tensor) -> Tensor:
    """Numbers of rows rounded up: to a power of two while few, to a multiple of the step above."""
    power = torch.exp2(rows.clamp(min=1).double().log2().ceil()).long()
    stepped = (rows + _STEP - 1) // _STEP * _STEP
    return torch.where(rows < _STEP, power, stepped).masked_fill_(rows == 0, 0)


def _best_height(counts_e: Tensor, call_rows: int) -> int:
    """Base rows per expert with the least estimated time, in units of one row's product."""
    highest = int(counts_e.max()) + _STEP - 1
    heights = torch.arange(0, highest // _STEP * _STEP + 1, _STEP, device=counts_e.device)
    more = _padded((counts_e - heights.unsqueeze(1)).clamp_(min=0))
    calls = (more > 0) * (_CALL_ROWS + call_rows)
    base = (heights > 0) * (heights + _READ_ROWS) * len(counts_e)
    return int(heights[(base + (more + calls).sum(1)).argmin()])
