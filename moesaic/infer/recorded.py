"""`Passes`: on a GPU, passes of few tokens recorded once and then repeated without the host.

Such a pass takes a GPU less time than the host needs to ask for its kernels one by one.

Letters: T tokens fed, V vocabulary, D hidden, B sequences, S positions fed, C positions seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from moesaic.infer.blocks import BlockPool, Held
from moesaic.model.experts import Experts
from moesaic.model.transformer import Transformer

_FEWEST_SEEN = 8
"""Blocks that the smallest pass has room for."""
_NUMBERS = 3
"""Before the blocks of a token: its id, its position, and where it is stored."""
_WARM_UPS = 2
"""Passes before recording: libraries make their workspaces in the first ones."""

Row = tuple[Held, Sequence[int]]
"""A sequence and the ids it is fed."""
Computed = tuple[Tensor, Tensor]
"""Logits [T, V] and normed hidden states [T, D] of all tokens, both float32."""


class TableCache:
    """One pass of a fixed shape over a pool: what `Transformer` takes as its ``cache``.

    Every token is a row of its own. It is stored before anything is read, so tokens of one sequence
    that are fed together see each other as if they had come one by one. Nothing here waits for the
    device or depends on values: that is what makes a pass one that can be recorded.
    """

    length = 0
    documents: Tensor | None = None

    def __init__(self, pool: BlockPool, inputs_TI: Tensor) -> None:
        """Prepare a pass.

        Args:
            pool: where the sequences are.
            inputs_TI: of each token its id, its position, its place in the pool, and the blocks of
                its sequence, filled up with any.
        """
        self._pool = pool
        self._place_T = inputs_TI[:, 2]
        within = torch.arange(pool.block, device=inputs_TI.device)
        self._seen_TC = (inputs_TI[:, _NUMBERS:, None] * pool.block + within).flatten(1)
        place_C = torch.arange(self._seen_TC.shape[1], device=inputs_TI.device)
        self.visible = (place_C <= inputs_TI[:, 1:2])[:, None, None]

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Store the ``parts`` of all tokens, each [T, 1, …]; returns what each has in view, each
        [T, C, …]."""
        flat = self._pool.layers[layer].flatten(0, 1)
        fed = torch.cat([part.flatten(1) for part in parts], dim=-1).to(self._pool.dtype)
        flat.index_copy_(0, self._place_T, fed)
        seen = flat[self._seen_TC].to(parts[0].dtype)
        pieces = zip(seen.split([*map(prod, self._pool.parts)], -1), self._pool.parts, strict=True)
        return tuple(piece.unflatten(-1, shape) for piece, shape in pieces)

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Nothing: whoever holds the sequences counts."""


class Passes:
    """The passes of a model over a pool, each recorded when its shape is first met.

    A shape is the number of tokens and of positions in view, both rounded up to powers of two.
    Elsewhere than on a GPU the same passes are computed without being recorded.
    """

    def __init__(self, model: Transformer, pool: BlockPool) -> None:
        self._model, self._pool = model, pool
        self._passes: dict[_Shape, _Pass] = {}

    def run(self, rows: Sequence[Row], previous_TD: Tensor | None = None) -> Computed:
        """Feed tokens to sequences that have room for them; their lengths are left as they are.

        Args:
            rows: what is fed to whom.
            previous_TD: hidden states, if the first prediction module is to be fed.

        Returns:
            Of all tokens; overwritten by the next pass of the same shape.
        """
        n_tokens = sum(len(ids) for _, ids in rows)
        blocks = max(len(held.blocks) for held, _ in rows)
        shape = _Shape(
            _power_of_two(n_tokens),
            max(_FEWEST_SEEN, _power_of_two(blocks)),
            drafts=previous_TD is not None,
        )
        if shape not in self._passes:
            self._passes[shape] = _Pass(self._model, self._pool, shape)
        inputs = [numbers for held, ids in rows for numbers in _inputs(held, ids, shape.blocks)]
        spare = [0, 0, self._pool.spare * self._pool.block, *[self._pool.spare] * shape.blocks]
        inputs += [spare] * (shape.tokens - n_tokens)
        return self._passes[shape].run(torch.tensor(inputs), previous_TD)


def can_be_recorded(model: Transformer) -> bool:
    """Whether nothing in a pass of the model waits for the host.

    The framework's grouped matmul takes groups whose sizes only the device knows in bfloat16 and
    from compute capability 9.0 on (H100); experts that are brought in, or unpacked, wait.
    """
    weight, config = model.model.embed_tokens.weight, model.config
    dtype = model.compute_dtype or weight.dtype
    if weight.device.type != "cuda" or dtype != torch.bfloat16:
        return False
    layers = model.moe_layers().values()
    plain = all(type(layer.experts) is Experts for layer in layers)
    plain = plain and all(
        layer.experts.frozen is None and layer.experts.lora is None for layer in layers
    )
    even = config.hidden_size % 8 == 0 and (config.moe_intermediate_size or 0) % 8 == 0
    return plain and even and torch.cuda.get_device_capability(weight.device) >= (9, 0)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is fixed in a recorded pass."""

    tokens: int
    blocks: int
    """That each token has in view."""
    drafts: bool
    """Whether it is a pass of the first prediction module."""


class _Pass:
    """One pass: its inputs and its results stay where they are."""

    def __init__(self, model: Transformer, pool: BlockPool, shape: _Shape) -> None:
        self._model, self._pool = model, pool
        weight = model.model.embed_tokens.weight
        size = (shape.tokens, _NUMBERS + shape.blocks)
        self._inputs_TI = torch.zeros(size, dtype=torch.int64, device=weight.device)
        self._inputs_TI[:, 2:] = pool.spare
        self._inputs_TI[:, 2] *= pool.block
        self._previous_TD = None
        if shape.drafts:
            self._previous_TD = weight.new_zeros(shape.tokens, weight.shape[1], dtype=torch.float32)
        self._repeat = self.compute
        if weight.device.type == "cuda":
            with torch.cuda.device(weight.device):
                self._repeat = recorded(self.compute)

    def run(self, inputs_TI: Tensor, previous_TD: Tensor | None) -> Computed:
        """Compute with these inputs."""
        self._inputs_TI.copy_(inputs_TI)
        if self._previous_TD is not None and previous_TD is not None:
            self._previous_TD[: len(previous_TD)] = previous_TD
        return self._repeat()

    def compute(self) -> Computed:
        """What is recorded."""
        ids_T1, positions_T1 = self._inputs_TI[:, :1], self._inputs_TI[:, 1:2]
        cache = TableCache(self._pool, self._inputs_TI)
        if self._previous_TD is None:
            hidden_T1D = self._model.hidden_states(ids_T1, positions_T1, cache=cache)
        else:
            previous_T1D = self._previous_TD.unsqueeze(1)
            hidden_T1D = self._model.draft(previous_T1D, ids_T1, positions_T1, cache=cache)
        hidden_TD = hidden_T1D.squeeze(1)
        return self._model.head(hidden_TD).float(), hidden_TD.float()


def recorded(compute: Callable[[], Computed]) -> Callable[[], Computed]:
    """A computation on the current GPU, to be repeated as one call with results in one place.

    Source: PyTorch's notes on CUDA graphs, whole-network capture.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may copy weights
        results = compute()

    def repeat() -> Computed:
        graph.replay()
        return results

    return repeat


def _inputs(held: Held, ids: Sequence[int], blocks: int) -> list[list[int]]:
    """The numbers of each token of one sequence."""
    block = held.pool.block
    seen = [*held.blocks, *[held.blocks[0]] * (blocks - len(held.blocks))]
    return [
        [token, at, held.blocks[at // block] * block + at % block, *seen]
        for at, token in enumerate(ids, held.length)
    ]


def _power_of_two(number: int) -> int:
    """The least one that is no less."""
    return 1 << (number - 1).bit_length()
