"""`BlockPool`: the caches of many sequences in blocks of equal size, and a pass over them.

Letters: B sequences, S positions fed, C positions held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError

BLOCK = 32
"""Positions in a block."""
_FEW = 8
"""Up to so many tokens of every sequence, what each sees is said once for all layers."""


class BlockPool:
    """Room for cached positions of all sequences together.

    A position takes Z + R values per layer with latent attention, and the keys and values of every
    key-value head without. A block may belong to several sequences that begin alike; it is free
    again when the last of them gives it back.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.1.4, table 1; blocks as in Kwon et al. 2023
    (arXiv 2309.06180) section 4.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        block: int = BLOCK,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the room; on a CPU the memory is taken as it is written.

        Args:
            config: the model, with its prediction modules.
            n_blocks: how many.
            block: positions in each.
            dtype: of what is cached.
            device: where.
        """
        self.block, self.n_blocks, self.dtype = block, n_blocks, dtype
        self.parts = cached_parts(config)
        width = sum(map(prod, self.parts))
        depth = config.num_hidden_layers + config.num_nextn_predict_layers
        self.spare = n_blocks  # a block that no sequence gets, for what fills up a pass
        shape = (n_blocks + 1, block, width)
        self.layers = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(depth))
        self._free = list(range(n_blocks - 1, -1, -1))
        self._owners = [0] * n_blocks

    @property
    def n_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def bytes_per_position(self) -> int:
        """Memory of one position in all layers."""
        return sum(layer[0, 0].nbytes for layer in self.layers)

    @property
    def n_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(layer[: self.n_blocks].nbytes for layer in self.layers)

    def take(self) -> int:
        """A free block, held once.

        Raises:
            RequestError: if there is none.
        """
        if not self._free:
            raise RequestError(
                f"all {self.n_blocks} blocks of {self.block} positions are taken; wait until a "
                "sequence ends, or make room for more"
            )
        block = self._free.pop()
        self._owners[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block once more."""
        assert self._owners[block] > 0
        self._owners[block] += 1

    def owners(self, block: int) -> int:
        """How often a block is held."""
        return self._owners[block]

    def give_back(self, block: int) -> None:
        """Hold a block once less."""
        assert self._owners[block] > 0
        self._owners[block] -= 1
        if not self._owners[block]:
            self._free.append(block)


@dataclass(slots=True)
class Held:
    """What one sequence has in a pool."""

    pool: BlockPool
    blocks: list[int] = field(default_factory=list)
    length: int = 0
    """Positions that are filled."""

    def make_room(self, more: int) -> None:
        """Take blocks for further positions.

        Raises:
            RequestError: if there are too few; none is taken then.
        """
        missing = -(-(self.length + more) // self.pool.block) - len(self.blocks)
        if missing > self.pool.n_free:
            raise RequestError(
                f"{more} more positions need {missing} blocks and {self.pool.n_free} are free; "
                "wait until a sequence ends, or make room for more"
            )
        self.blocks.extend(self.pool.take() for _ in range(missing))

    def cut(self, length: int) -> None:
        """Forget the positions from ``length`` on, as after a draft that was not accepted."""
        assert length <= self.length
        kept = -(-length // self.pool.block)
        for block in self.blocks[kept:]:
            self.pool.give_back(block)
        del self.blocks[kept:]
        self.length = length

    def release(self) -> None:
        """Give everything back."""
        self.cut(0)


class PagedCache:
    """One forward pass over sequences in a pool: what `Transformer` takes as its ``cache``.

    Rows are filled on the left, as `PromptBatch` does it: ``documents_BS`` is 1 for tokens and 0
    for what fills a row. A cache serves one pass; rooms must have been made before.
    """

    def __init__(self, held: Sequence[Held], fed: Sequence[int]) -> None:
        """Prepare a pass.

        Args:
            held: of each row, with room for what is fed.
            fed: tokens of each row that are not filling.
        """
        self._held, self._fed = list(held), list(fed)
        pool = held[0].pool
        self._pool, device = pool, pool.layers[0].device
        self.length = max(one.length for one in held)
        ragged = len({one.length for one in held}) > 1 or len(set(fed)) > 1
        missing = [self.length - one.length for one in held]
        places = [_places(one, one.length + n).to(device) for one, n in zip(held, fed, strict=True)]
        rows = [
            F.pad(place[: one.length], (n, 0))
            for place, one, n in zip(places, held, missing, strict=True)
        ]
        self._before_BC = torch.stack(rows)
        self.documents = None
        if ragged:
            place_C = torch.arange(self.length)
            self.documents = (place_C >= torch.tensor(missing).unsqueeze(1)).long().to(device)
        self.visible = None  # earlier positions of the same document
        if not ragged and 1 < fed[0] <= _FEW:
            seen = torch.ones(1, 1, fed[0], self.length + fed[0], dtype=torch.bool, device=device)
            self.visible = seen.tril(self.length)
        self._after = [place[one.length :] for place, one in zip(places, held, strict=True)]

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Store the fed positions' ``parts``, each [B, S, …]; returns all, each [B, C + S, …]."""
        fed_BSW = torch.cat([part.flatten(2) for part in parts], dim=-1).to(self._pool.dtype)
        flat = self._pool.layers[layer].flatten(0, 1)
        for row, places, n in zip(fed_BSW, self._after, self._fed, strict=True):
            flat[places] = row[len(row) - n :]
        held_BCW = flat[self._before_BC]
        all_BCW = torch.cat((held_BCW, fed_BSW), dim=1).to(parts[0].dtype)
        widths = [prod(shape) for shape in self._pool.parts]
        pieces = zip(all_BCW.split(widths, dim=-1), self._pool.parts, strict=True)
        return tuple(piece.unflatten(-1, shape) for piece, shape in pieces)

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Count the fed positions as held."""
        assert documents_BS is not None or set(self._fed) == {n_positions}
        for one, n in zip(self._held, self._fed, strict=True):
            one.length += n


def cached_parts(config: ModelConfig) -> tuple[tuple[int, ...], ...]:
    """Shapes of what a layer caches of one position: latent and rotated key, or keys and values."""
    if config.is_latent:
        assert config.kv_lora_rank
        assert config.qk_rope_head_dim
        return (config.kv_lora_rank,), (config.qk_rope_head_dim,)
    heads = config.num_key_value_heads, config.qk_head_dim
    return heads, heads


def _places(held: Held, stop: int) -> Tensor:
    """Where the first positions lie in a layer's blocks laid end to end."""
    block = held.pool.block
    first = torch.tensor(held.blocks[: -(-stop // block)], dtype=torch.int64)[:, None] * block
    return (first + torch.arange(block)).flatten()[:stop]
