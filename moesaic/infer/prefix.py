"""`Prefixes`: beginnings that sequences have in common, computed once.

A whole block of a pool is found again by a hash of its tokens and of all tokens before it, and of
the weights that it was computed with.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from moesaic.infer.blocks import BlockPool, Held


class Prefixes:
    """Whole blocks that stay in a pool after their sequence has ended, until room is needed.

    Each is held once more than its sequences hold it. What was used longest ago goes first, and of
    one beginning the end goes before the start.

    Source: Kwon et al. 2023 (arXiv 2309.06180) section 4.4; hash chains as in vLLM's prefix cache.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        """Blocks kept."""
        return len(self._blocks)

    @property
    def n_idle(self) -> int:
        """Blocks that no sequence holds: as good as free."""
        return sum(self._pool.owners(block) == 1 for block in self._blocks.values())

    def begin(self, ids: Sequence[int], root: bytes = b"") -> Held:
        """What a sequence of these ids need not compute. Its last id is never among it: a pass has
        to be fed something.

        Args:
            ids: of the sequence.
            root: stands for the weights; see `Variant`.
        """
        blocks, names = [], []
        for name in self._names(ids[: len(ids) - 1], root):
            block = self._blocks.get(name)
            if block is None:
                break
            self._pool.share(block)
            blocks.append(block)
            names.append(name)
        self._touch(names)
        return Held(self._pool, blocks, len(blocks) * self._pool.block)

    def keep(self, ids: Sequence[int], held: Held, root: bytes = b"") -> None:
        """Keep the whole blocks of a sequence with what they were computed from.

        Args:
            ids: at least those of the positions held.
            held: what the sequence has.
            root: see `begin`.
        """
        names = []
        for name, block in zip(self._names(ids[: held.length], root), held.blocks, strict=False):
            if name not in self._blocks:
                self._pool.share(block)
                self._blocks[name] = block
            names.append(name)
        self._touch(names)

    def make_free(self, n: int) -> bool:
        """Give blocks up until ``n`` are free; whether there are."""
        missing = n - self._pool.n_free
        for name, block in list(self._blocks.items()) if missing > 0 else ():
            if self._pool.owners(block) == 1:
                del self._blocks[name]
                self._pool.give_back(block)
                missing -= 1
            if missing <= 0:
                break
        return missing <= 0

    def clear(self) -> None:
        """Keep nothing."""
        for block in self._blocks.values():
            self._pool.give_back(block)
        self._blocks.clear()

    def _names(self, ids: Sequence[int], root: bytes) -> Iterator[bytes]:
        """The name of each whole block."""
        name, block = root, self._pool.block
        for start in range(0, len(ids) - block + 1, block):
            name = hashlib.sha256(name + array("q", ids[start : start + block]).tobytes()).digest()
            yield name

    def _touch(self, names: Sequence[bytes]) -> None:
        """Count these as used now, a beginning after its continuations."""
        for name in reversed(names):
            self._blocks.move_to_end(name)
