"""Log-probabilities of tokens: rows of ids through the model, and only the asked positions through
its head.

Letters: B sequences, S positions, T tokens asked about, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import RequestError
from moesaic.eval.batches import Batch
from moesaic.eval.beginnings import feed_beginnings
from moesaic.eval.encode import Ids
from moesaic.model.transformer import Transformer

_CHUNK_LOGITS = 2**24
"""Logits held at a time, 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked about one row."""

    ids: Ids
    """The row."""
    positions: tuple[int, ...]
    """Where; the same may be asked about several times."""
    tokens: tuple[int, ...]
    """What would follow each."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a row gives, in the order of its query."""

    log_probabilities: tuple[float, ...]
    """In nats."""
    is_first: tuple[bool, ...]
    """Whether the token is the model's first choice."""


@torch.inference_mode()
def score_batch(model: Transformer, queries: Sequence[Query], batch: Batch) -> list[Found]:
    """Feed a batch and look up what was asked; all logits never exist at once.

    Rows are filled on the right, where causal attention does not look: a row gives what it would
    give alone.

    Args:
        model: asked.
        queries: of every row, by its place.
        batch: the rows to feed; nothing is asked about a shared beginning but its last token.

    Returns:
        For every row of the batch, in its order.

    Raises:
        RequestError: if a logit is not a finite number.
    """
    asked = [queries[row] for row in batch.rows]
    shared = [group.shared for group in batch.groups for _ in group.rows]
    hidden_BSD = _feed(model, batch, queries)
    rows = [place for place, query in enumerate(asked) for _ in query.positions]
    columns = [
        position - start
        for query, start in zip(asked, shared, strict=True)
        for position in query.positions
    ]
    tokens = torch.tensor([token for query in asked for token in query.tokens])
    scores, is_first = token_scores(
        hidden_BSD[rows, columns], model.head_weight, tokens.to(hidden_BSD.device)
    )
    counts = [len(query.positions) for query in asked]
    return [
        Found(tuple(part.tolist()), tuple(first.tolist()))
        for part, first in zip(scores.split(counts), is_first.split(counts), strict=True)
    ]


def token_scores(hidden_TD: Tensor, head_VD: Tensor, tokens_T: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of a token after each hidden state, and whether it is the likeliest.

    Args:
        hidden_TD: after the last norm.
        head_VD: from these to logits.
        tokens_T: asked about.

    Returns:
        float64 and bool, both on the CPU.

    Raises:
        RequestError: if a logit is not a finite number.
    """
    chunk = max(1, _CHUNK_LOGITS // head_VD.shape[0])
    head = head_VD.to(hidden_TD.dtype)
    found: list[Tensor] = []
    firsts: list[Tensor] = []
    for hidden, tokens in zip(hidden_TD.split(chunk), tokens_T.split(chunk), strict=True):
        logits = F.linear(hidden, head)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        normaliser = logits.logsumexp(dim=-1)
        found.append(logits.gather(1, tokens[:, None])[:, 0] - normaliser)
        firsts.append(logits.argmax(dim=-1) == tokens)
    scores = torch.cat(found).double().cpu()
    if not scores.isfinite().all():
        raise RequestError(
            f"the model's logits are not finite in {str(hidden_TD.dtype).removeprefix('torch.')}; "
            "take dtype=float32, or run `moesaic check` on its folder"
        )
    return scores, torch.cat(firsts).cpu()


def _feed(model: Transformer, batch: Batch, queries: Sequence[Query]) -> Tensor:
    """Hidden states of what the rows do not share, [B, S, D]."""
    device = model.model.embed_tokens.weight.device
    shared = [group.shared for group in batch.groups for _ in group.rows]
    ends = [queries[row].ids[start:] for row, start in zip(batch.rows, shared, strict=True)]
    longest = max(map(len, ends))
    ids_BS = torch.tensor([(*end, *[0] * (longest - len(end))) for end in ends], device=device)
    if not batch.is_shared:
        return model.hidden_states(ids_BS)
    starts = [queries[group.rows[0]].ids[: group.shared] for group in batch.groups]
    begun = feed_beginnings(model, starts, torch.tensor(batch.group_of_row, device=device))
    places = [range(start, start + longest) for start in shared]
    positions_BS = torch.tensor([list(row) for row in places], device=device)
    return model.hidden_states(ids_BS, positions_BS, torch.ones_like(ids_BS), begun)
