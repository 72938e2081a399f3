"""`Decoder`: feeds tokens to sequences whose caches lie in a pool, in the form that suits them.

Letters: T tokens fed, D hidden, V vocabulary, B sequences, S positions fed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held, PagedCache
from moesaic.infer.expert_load import ExpertLoad
from moesaic.infer.held import held_codes
from moesaic.infer.native import NativeDecoder
from moesaic.infer.prompts import PromptBatch
from moesaic.infer.recorded import Passes, can_be_recorded
from moesaic.kernels.native.pack import BITS, Form
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer

Wants = Literal["none", "last", "all", "hidden", "end"]
"""Of which tokens hidden states and logits are asked for: ``end``, of all, and of the last."""
_EARLY: dict[Wants, Wants] = {"last": "none", "end": "hidden"}
_CHUNK = 1024
"""Tokens of a prompt that are fed at a time: what a pass needs besides the cache stays bounded."""
_FEW = 128
"""Up to this many tokens the compiled form is faster than matmuls."""
_FEW_OF_INTEGERS = {torch.bfloat16: 256, torch.float32: 512}
"""The same of weights held as integers."""
_FEW_RECORDED = 32
"""Up to this many tokens a GPU waits for its host, pass after pass."""


@dataclass(frozen=True, slots=True)
class Fed:
    """Tokens for one sequence."""

    held: Held
    ids: tuple[int, ...]
    wants: Wants = "last"


@dataclass(frozen=True, slots=True)
class Found:
    """What came out for one sequence."""

    logits_TV: Tensor
    """Float32, of the tokens whose logits were asked for."""
    hidden_TD: Tensor
    """Normed, float32, of the tokens whose hidden states were asked for: the last are the same."""


@dataclass(frozen=True, slots=True)
class Known:
    """Positions of one sequence whose next token is known: what its prediction module is fed."""

    held: Held
    """What the sequence holds of the module: in its own blocks, with a length of its own."""
    ids: tuple[int, ...]
    """The token after each position."""
    hidden_TD: Tensor
    """Normed hidden states of the positions."""


class Decoder(Protocol):
    """Feeds tokens."""

    @property
    def model(self) -> Transformer:
        """What they are fed to."""
        ...

    @property
    def pool(self) -> BlockPool:
        """Where the caches are."""
        ...

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        """Feed tokens of several sequences, each named once; what they hold grows by them.

        Raises:
            RequestError: if the pool has too little room; nothing is fed then.
        """
        ...

    def draft(self, known: Sequence[Known]) -> Tensor:
        """Feed the first prediction module, each sequence named once.

        Returns:
            Logits of the token after the last known one, float32 [B, V].
        """
        ...


class TorchDecoder:
    """Any model on any device, through `Transformer`."""

    def __init__(self, model: Transformer, pool: BlockPool, load: ExpertLoad | None = None) -> None:
        self.model, self.pool, self._load = model, pool, load

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        """See `Decoder`. Sequences go in one pass, prompts longer than a chunk in several."""
        make_rooms(fed)
        short = [one for one in fed if len(one.ids) <= _CHUNK]
        found = {id(one.held): self._feed_in_chunks(one) for one in fed if len(one.ids) > _CHUNK}
        if short:
            each = zip(short, self._feed_once(short), strict=True)
            found.update((id(one.held), got) for one, got in each)
        return [found[id(one.held)] for one in fed]

    def _feed_in_chunks(self, one: Fed) -> Found:
        found = []
        for start in range(0, len(one.ids), _CHUNK):
            part = one.ids[start : start + _CHUNK]
            is_last = start + _CHUNK >= len(one.ids)
            wants = one.wants if is_last else _EARLY.get(one.wants, one.wants)
            found.append(self._feed_once([Fed(one.held, part, wants)])[0])
        return Found(
            torch.cat([each.logits_TV for each in found]),
            torch.cat([each.hidden_TD for each in found]),
        )

    @torch.inference_mode()
    def _feed_once(self, fed: Sequence[Fed]) -> list[Found]:
        batch, cache = self._batch(fed)
        trace = None if self._load is None else RoutingTrace()
        hidden_BSD = self.model.hidden_states(
            batch.ids_BS, batch.positions_BS, batch.documents_BS, cache, trace
        )
        if self._load is not None and trace is not None:
            self._load.add_trace(trace)
        asked = [row[len(row) - _count(one) :] for row, one in zip(hidden_BSD, fed, strict=True)]
        scored = [row[len(row) - _count_scored(one) :] for one, row in zip(fed, asked, strict=True)]
        logits_TV = self.model.head(torch.cat(scored)).float()
        split = zip(logits_TV.split(list(map(len, scored))), asked, strict=True)
        return [Found(logits, hidden.float()) for logits, hidden in split]

    @torch.inference_mode()
    def draft(self, known: Sequence[Known]) -> Tensor:
        """See `Decoder`."""
        batch, cache = self._batch(known)
        longest = batch.ids_BS.shape[1]
        rows = [F.pad(one.hidden_TD, (0, 0, longest - len(one.ids), 0)) for one in known]
        hidden_BSD = self.model.draft(
            torch.stack(rows), batch.ids_BS, batch.positions_BS, batch.documents_BS, cache
        )
        return self.model.head(hidden_BSD[:, -1]).float()

    def _batch(self, rows: Sequence[Fed] | Sequence[Known]) -> tuple[PromptBatch, PagedCache]:
        """What is fed as one batch whose positions go on from what is held."""
        device = self.model.model.embed_tokens.weight.device
        batch = PromptBatch.of([row.ids for row in rows], device)
        cache = PagedCache([row.held for row in rows], [len(row.ids) for row in rows])
        longest = batch.ids_BS.shape[1]
        before = [row.held.length + len(row.ids) - longest for row in rows]
        positions_BS = torch.tensor(before).unsqueeze(1) + torch.arange(longest)
        documents_BS = batch.documents_BS
        if cache.documents is not None and documents_BS is None:
            documents_BS = torch.ones_like(batch.ids_BS)
        placed = positions_BS.clamp(min=0).to(device)
        return PromptBatch(batch.ids_BS, placed, documents_BS), cache


class CpuDecoder:
    """On a CPU: few tokens through the compiled form, many through `TorchDecoder`, unless they are
    to meet integers that the compiled form alone has made."""

    def __init__(
        self,
        model: Transformer,
        pool: BlockPool,
        form: Form = "weights",
        load: ExpertLoad | None = None,
    ) -> None:
        """Describe the model to the compiled form.

        Raises:
            RequestError: if there is none, or it does not serve the model.
        """
        self.model, self.pool = model, pool
        self._native = NativeDecoder(model, pool, form, load)
        codes, dtype = held_codes(model), model.model.embed_tokens.weight.dtype
        is_shared = codes or form in ("weights", "lossless")
        self._many = TorchDecoder(model, pool, load) if is_shared else None
        self._few = _FEW_OF_INTEGERS[dtype] if codes & BITS.keys() else _FEW

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        """See `Decoder`."""
        if self._many is not None and sum(len(one.ids) for one in fed) > self._few:
            return self._many.feed(fed)
        make_rooms(fed)
        ids = [token for one in fed for token in one.ids]
        owners = [one.held for one in fed for _ in one.ids]
        ends = list(accumulate(len(one.ids) for one in fed))
        asked = [range(end - _count(one), end) for one, end in zip(fed, ends, strict=True)]
        scored = [range(end - _count_scored(one), end) for one, end in zip(fed, ends, strict=True)]
        logits, hidden = self._native.step(ids, owners, [*chain(*scored)])
        if len(ids) == 1 == len(asked[0]):
            return [Found(logits, hidden)]
        each = zip(accumulate(map(len, scored)), scored, asked, strict=True)
        return [Found(logits[n - len(few) : n], hidden[of.start : of.stop]) for n, few, of in each]

    @torch.inference_mode()
    def draft(self, known: Sequence[Known]) -> Tensor:
        """See `Decoder`."""
        if self._many is not None and sum(len(one.ids) for one in known) > self._few:
            return self._many.draft(known)
        previous_TD = torch.cat([one.hidden_TD for one in known])
        ids = [token for one in known for token in one.ids]
        owners = [one.held for one in known for _ in one.ids]
        last = [end - 1 for end in accumulate(len(one.ids) for one in known)]
        return self._native.draft(previous_TD, ids, owners, last)


class GpuDecoder:
    """On a GPU: few tokens through recorded passes, many through `TorchDecoder`."""

    def __init__(self, model: Transformer, pool: BlockPool, load: ExpertLoad | None = None) -> None:
        self.model, self.pool = model, pool
        self._many, self._few = TorchDecoder(model, pool, load), Passes(model, pool)

    @torch.inference_mode()
    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        """See `Decoder`."""
        if sum(len(one.ids) for one in fed) > _FEW_RECORDED:
            return self._many.feed(fed)
        make_rooms(fed)
        logits_TV, hidden_TD = self._few.run([(one.held, one.ids) for one in fed])
        ends = list(accumulate(len(one.ids) for one in fed))
        for one in fed:
            one.held.length += len(one.ids)
        return [
            Found(
                logits_TV[end - _count_scored(one) : end].clone(),
                hidden_TD[end - _count(one) : end].clone(),
            )
            for one, end in zip(fed, ends, strict=True)
        ]

    @torch.inference_mode()
    def draft(self, known: Sequence[Known]) -> Tensor:
        """See `Decoder`."""
        if sum(len(one.ids) for one in known) > _FEW_RECORDED:
            return self._many.draft(known)
        previous_TD = torch.cat([one.hidden_TD for one in known])
        logits_TV, _ = self._few.run([(one.held, one.ids) for one in known], previous_TD)
        for one in known:
            one.held.length += len(one.ids)
        return logits_TV[[end - 1 for end in accumulate(len(one.ids) for one in known)]]


def build_decoder(
    model: Transformer, pool: BlockPool, form: Form = "weights", load: ExpertLoad | None = None
) -> Decoder:
    """The fastest decoder that serves a model where it is; it counts tokens of experts in ``load``.

    Raises:
        CheckpointError, RequestError: if the form is asked for and cannot be had: see `as_rows`.
    """
    if form == "weights" and can_be_recorded(model):
        return GpuDecoder(model, pool, load)
    try:
        return CpuDecoder(model, pool, form, load)
    except RequestError:
        if form != "weights":
            raise
        return TorchDecoder(model, pool, load)


def make_rooms(fed: Sequence[Fed]) -> None:
    """Room for all that is fed, or for none of it.

    Raises:
        RequestError: if the pool has too little.
    """
    kept = [len(one.held.blocks) for one in fed]
    try:
        for one in fed:
            one.held.make_room(len(one.ids))
    except RequestError:
        for one, n in zip(fed, kept, strict=True):
            for block in one.held.blocks[n:]:
                one.held.pool.give_back(block)
            del one.held.blocks[n:]
        raise


def _count(one: Fed) -> int:
    """Of how many tokens, the last ones, hidden states are asked for."""
    return {"none": 0, "last": 1}.get(one.wants, len(one.ids))


def _count_scored(one: Fed) -> int:
    """Of how many tokens, the last ones, logits are asked for."""
    return {"hidden": 0, "end": 1}.get(one.wants, _count(one))
