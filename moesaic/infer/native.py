"""`NativeDecoder`: a model on a CPU, fed tokens by compiled calls.

Letters: T tokens fed, D hidden, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from ctypes import pointer
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.describe import Description, most_tokens
from moesaic.infer.expert_load import ExpertLoad
from moesaic.infer.held import cache_of
from moesaic.kernels.native.pack import Form
from moesaic.kernels.native.structures import NEED, Pass, native_library
from moesaic.model.mtp import PredictionModule
from moesaic.model.norm import RMSNorm
from moesaic.model.transformer import Transformer


class NativeDecoder:
    """Runs tokens of any sequences through a model whose caches lie in a pool.

    The numbers are those of `Transformer`, but sums and what goes from layer to layer stay in
    float32, whatever the weights are; with integer weights, what they are multiplied with is
    rounded to 8 bits in groups, too. A token's numbers do not depend on what else is fed, nor on
    which experts were at hand. Weights held as they are stay where the model has them, and must
    not be replaced meanwhile.
    """

    def __init__(
        self,
        model: Transformer,
        pool: BlockPool,
        form: Form = "weights",
        load: ExpertLoad | None = None,
    ) -> None:
        """Describe a model to the compiled functions.

        Args:
            model: on a CPU, in float32 or bfloat16.
            pool: where its caches lie.
            form: how to hold its matrices; see `Description`.
            load: where to count the tokens of each expert; None does not.

        Raises:
            RequestError: if there is no compiled form, or not of this model.
        """
        self._library = native_library()
        self.model, self.pool, self._load = model, pool, load
        self._experts = cache_of(model)
        self._error: BaseException | None = None
        need = None if self._experts is None else NEED(self._need)
        self._description = Description(model, pool, form, need)
        self._most = most_tokens(model, self._library.moesaic_most_tokens())

    def step(
        self, ids: Sequence[int], owners: Sequence[Held], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Feed tokens; those of one sequence follow each other, and its cache.

        Args:
            ids: of the tokens.
            owners: the sequence of each; rooms must have been made before.
            wanted: ascending indices of the tokens whose logits are asked for; None for all.

        Returns:
            Logits float32 [wanted, V], and the normed hidden states float32 [T, D].
        """
        x_TD = self.model.model.embed_tokens.weight.detach()[list(ids)].float()
        depth = self.model.config.num_hidden_layers
        norm = self.model.model.norm.weight
        return self.run(x_TD, owners, range(depth), norm, wanted)

    def draft(
        self,
        previous_TD: Tensor,
        ids: Sequence[int],
        owners: Sequence[Held],
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed the first prediction module; logits of the token after the next one.

        Args:
            previous_TD: hidden states of some tokens, as `step` gives them.
            ids: the token after each.
            owners: what each one's sequence holds of the module.
            wanted: see `step`.
        """
        depth = self.model.config.num_hidden_layers
        module = self.model.model.layers[depth]
        assert isinstance(module, PredictionModule)
        embedded_TD = self.model.model.embed_tokens.weight.detach()[list(ids)]
        x_TD = module.join(previous_TD.to(embedded_TD.dtype), embedded_TD).float()
        norm = module.shared_head["norm"]
        assert isinstance(norm, RMSNorm)
        return self.run(x_TD, owners, range(depth, depth + 1), norm.weight, wanted)[0]

    def run(
        self,
        x_TD: Tensor,
        owners: Sequence[Held],
        layers: range,
        norm: Tensor,
        wanted: Sequence[int] | None = None,
        advance: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Some layers, a norm and the head. See `step`.

        More tokens than a call takes go through one layer after the other, so that the experts of
        a layer are brought once for all of them.

        Args:
            x_TD: float32, the input of the first layer; it is overwritten by the hidden states.
            owners: the sequence of each token.
            layers: which.
            norm: weight of the last norm.
            wanted: tokens whose logits are asked for.
            advance: whether the sequences count the tokens as held afterwards.

        Raises:
            CheckpointError: if an expert cannot be read; nothing counts as held then.
        """
        assert x_TD.is_contiguous()
        assert x_TD.dtype == torch.float32
        asked = range(len(owners)) if wanted is None else wanted
        pieces = list(_Piece.of(owners, asked, self._most))
        weight = norm.detach().float().contiguous()
        if len(pieces) > 1:
            for layer in layers:
                for piece in pieces:
                    self._pass(x_TD, piece, range(layer, layer + 1), None)
            layers = range(layers.stop, layers.stop)
        logits = torch.cat([self._pass(x_TD, piece, layers, weight) for piece in pieces])
        if advance:
            for owner in owners:
                owner.length += 1
        return logits, x_TD

    def _pass(self, x_TD: Tensor, piece: "_Piece", layers: range, norm: Tensor | None) -> Tensor:
        """One call; logits of the tokens that are asked for, if there is a norm."""
        model, asked = self._description.model, piece.asked if norm is not None else _NOTHING
        logits = torch.empty(len(asked), model.head.rows)
        n_tokens, chosen_LTK = len(piece.positions), None
        if self._load is not None and model.chosen:
            chosen_LTK = torch.empty(len(layers), n_tokens, model.chosen, dtype=torch.int32)
        told = Pass(
            *(each.data_ptr() for each in (piece.positions, piece.rows, piece.tables, asked)),
            None if norm is None else norm.data_ptr(),
            x_TD[piece.start :].data_ptr(),
            logits.data_ptr(),
            None if chosen_LTK is None else chosen_LTK.data_ptr(),
            n_tokens,
            len(asked),
            piece.tables.shape[1],
            layers.start,
            layers.stop,
            torch.get_num_threads(),
        )
        with nullcontext() if self._experts is None else self._experts.lock:
            failed = self._library.moesaic_pass(pointer(model), pointer(told))
        if failed:
            error, self._error = self._error, None
            assert error is not None
            raise error
        if self._load is not None and chosen_LTK is not None:
            self._load.add_chosen(layers.start, chosen_LTK)
        return logits

    def _need(self, layer: int, ids: Any, n: int, guess: Any, n_guessed: int) -> int:
        """``Need`` of model.h; what goes wrong is raised when the call has returned."""
        assert self._experts is not None
        try:
            self._experts.need(layer, Counter(ids[:n]), dict.fromkeys(guess[:n_guessed]))
        except BaseException as error:
            self._error = error
            return 1
        return 0


_NOTHING = torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one call."""

    start: int
    """Which the first is."""
    tables: Tensor
    """Blocks of each sequence, int32."""
    rows: Tensor
    """Of each token its sequence's row of the tables, int32."""
    positions: Tensor
    """Of each token, int32."""
    asked: Tensor
    """Tokens whose logits are asked for, counted in the piece, int32."""

    @classmethod
    def of(cls, owners: Sequence[Held], asked: Sequence[int], most: int) -> Iterator["_Piece"]:
        """All tokens in pieces."""
        tables, rows, positions = _placed(owners)
        for start in range(0, len(owners), most):
            inside = [i - start for i in asked if start <= i < start + most]
            parts = (each[start : start + most] for each in (rows, positions))
            numbers = (torch.tensor(each, dtype=torch.int32) for each in (*parts, inside))
            yield cls(start, tables, *numbers)


def _placed(owners: Sequence[Held]) -> tuple[Tensor, list[int], list[int]]:
    """Block tables int32, each token's row of them, and its position."""
    distinct = list({id(owner): owner for owner in owners}.values())
    row_of = {id(owner): row for row, owner in enumerate(distinct)}
    widest = max(len(owner.blocks) for owner in distinct)
    rows = [owner.blocks + [0] * (widest - len(owner.blocks)) for owner in distinct]
    fed = dict.fromkeys(row_of, 0)
    positions = []
    for owner in owners:
        positions.append(owner.length + fed[id(owner)])
        fed[id(owner)] += 1
    return torch.tensor(rows, dtype=torch.int32), [row_of[id(o)] for o in owners], positions
