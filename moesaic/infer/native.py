"""`NativeDecoder`: a model on a CPU, fed tokens by compiled calls.

Letters: T tokens fed, D hidden, V vocabulary.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from ctypes import byref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.describe import Description, most_tokens
from moesaic.infer.expert_load import ExpertLoad
from moesaic.infer.held import bringer_of
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
            CheckpointError: see `Description`.
            RequestError: if there is no compiled form, or not of this model.
        """
        self._library = native_library()
        self.model, self.pool, self._load = model, pool, load
        self._experts = bringer_of(model)
        self._error: BaseException | None = None
        need = None if self._experts is None else NEED(self._need)
        self._description = Description(model, pool, form, need)
        self._most = most_tokens(model, self._library.moesaic_most_tokens())
        self._norm = _floats(model.model.norm.weight)

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
        config = self.model.config
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise RequestError(f"token {wrong} is not one of the {config.vocab_size} tokens")
        x_TD = torch.empty(len(ids), config.hidden_size)
        depth = range(config.num_hidden_layers)
        return self._run(x_TD, owners, depth, self._norm, wanted, ids=array("i", ids))

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
        layers = range(depth, depth + 1)
        return self._run(x_TD, owners, layers, _floats(norm.weight), wanted)[0]

    def _run(
        self,
        x_TD: Tensor,
        owners: Sequence[Held],
        layers: range,
        norm: Tensor,
        wanted: Sequence[int] | None = None,
        ids: "array[int] | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """Some layers, a norm and the head. See `step`.

        More tokens than a call takes go through one layer after the other, so that the experts of
        a layer are brought once for all of them.

        Args:
            x_TD: float32, the input of the first layer; it is overwritten by the hidden states.
            owners: the sequence of each token.
            layers: which.
            norm: weight of the last norm, float32.
            wanted: tokens whose logits are asked for.
            ids: of the tokens, whose embeddings are the input; None: it is there.

        Raises:
            CheckpointError: if an expert cannot be read; nothing counts as held then.
            RequestError: if a text becomes longer than the model's, or memory too little; likewise.
        """
        asked = range(len(owners)) if wanted is None else wanted
        pieces = list(_Piece.of(ids, owners, asked, self._most))
        self._check_positions(pieces)
        if len(pieces) == 1:
            logits = self._pass(x_TD, pieces[0], layers, norm)
        else:
            for layer in layers:
                for piece in pieces:
                    self._pass(x_TD, piece, range(layer, layer + 1), None)
            after = range(layers.stop, layers.stop)
            logits = torch.cat([self._pass(x_TD, piece, after, norm) for piece in pieces])
        for owner in owners:
            owner.length += 1
        return logits, x_TD

    def _pass(self, x_TD: Tensor, piece: "_Piece", layers: range, norm: Tensor | None) -> Tensor:
        """One call; logits of the tokens that are asked for, if there is a norm."""
        assert x_TD.dtype == torch.float32
        model, asked = self._description.model, piece.asked if norm is not None else _NOTHING
        logits = torch.empty(len(asked), model.head.rows)
        n_tokens, chosen_LTK = len(piece.positions), None
        if self._load is not None and model.chosen:
            chosen_LTK = torch.empty(len(layers), n_tokens, model.chosen, dtype=torch.int32)
        ids = piece.ids if layers.start == 0 else None
        numbers = (ids, piece.positions, piece.rows, piece.tables, asked)
        told = Pass(
            *(None if each is None else each.buffer_info()[0] for each in numbers),
            None if norm is None else norm.data_ptr(),
            x_TD.data_ptr() + piece.start * x_TD.stride(0) * x_TD.element_size(),
            logits.data_ptr(),
            None if chosen_LTK is None else chosen_LTK.data_ptr(),
            n_tokens,
            len(asked),
            piece.widest,
            layers.start,
            layers.stop,
            torch.get_num_threads(),
        )
        with nullcontext() if self._experts is None else self._experts.lock:
            failed = self._library.moesaic_pass(byref(model), byref(told))
        if failed == _NO_MEMORY:
            raise RequestError(
                f"there is too little memory for a pass of {n_tokens} tokens; ask for shorter "
                "texts, or for fewer at a time"
            )
        if failed:
            error, self._error = self._error, None
            assert error is not None
            raise error
        if self._load is not None and chosen_LTK is not None:
            self._load.add_chosen(layers.start, chosen_LTK)
        return logits

    def _check_positions(self, pieces: Sequence["_Piece"]) -> None:
        """See that the model has the positions: what lies beyond their angles would be read."""
        last, most = max(max(piece.positions) for piece in pieces), self._description.n_positions
        if last >= most:
            raise RequestError(
                f"a text of {last + 1} tokens is longer than max_position_embeddings={most}; "
                "shorten it"
            )

    def _need(self, layer: int, ids: Any, n: int, guess: Any, n_guessed: int) -> int:
        """``Need`` of model.h; what goes wrong is raised when the call has returned."""
        assert self._experts is not None
        try:
            self._experts.need(layer, Counter(ids[:n]), dict.fromkeys(guess[:n_guessed]))
        except BaseException as error:
            self._error = error
            return 1
        return 0


_NOTHING = array("i")
_NO_MEMORY = 2
"""What a call gives that could not begin for want of memory."""


def _floats(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one call, in arrays of 32-bit integers: making tensors takes longer."""

    start: int
    """Which the first is."""
    ids: "array[int] | None"
    """Of each token, if they are known."""
    tables: "array[int]"
    """Blocks of each sequence, one row after the other."""
    widest: int
    """Blocks in a row of the tables."""
    rows: "array[int]"
    """Of each token its sequence's row of the tables."""
    positions: "array[int]"
    """Of each token."""
    asked: "array[int]"
    """Tokens whose logits are asked for, counted in the piece."""

    @classmethod
    def of(
        cls,
        ids: "array[int] | None",
        owners: Sequence[Held],
        asked: Sequence[int],
        most: int,
    ) -> Iterator["_Piece"]:
        """All tokens in pieces."""
        tables, widest, rows, positions = _placed(owners)
        for start in range(0, len(owners), most):
            stop = start + most
            inside = array("i", [i - start for i in asked if start <= i < stop])
            yield cls(
                start,
                None if ids is None else ids[start:stop],
                tables,
                widest,
                rows[start:stop],
                positions[start:stop],
                inside,
            )


def _placed(owners: Sequence[Held]) -> "tuple[array[int], int, array[int], array[int]]":
    """Block tables and the blocks in a row of them, each token's row, and its position."""
    distinct = {id(owner): owner for owner in owners}
    row_of = {key: row for row, key in enumerate(distinct)}
    widest = max(len(owner.blocks) for owner in distinct.values())
    tables = array("i")
    for owner in distinct.values():
        tables.extend(owner.blocks)
        tables.extend([0] * (widest - len(owner.blocks)))
    next_of = {key: owner.length for key, owner in distinct.items()}
    rows, positions = array("i"), array("i")
    for owner in owners:
        key = id(owner)
        rows.append(row_of[key])
        positions.append(next_of[key])
        next_of[key] += 1
    for key, owner in distinct.items():
        assert next_of[key] <= len(owner.blocks) * owner.pool.block, "rooms are made before"
    return tables, widest, rows, positions
