"""What a step minimises: next-token loss, multi-token losses, balance losses, told apart.

Letters: B sequences, S positions, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.balance.terms import BalanceTerm
from moesaic.data.batch import IGNORED, Batch
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import ModelLoss


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective, or a micro-batch's part of it."""

    value: Tensor
    """Without its weight."""
    weight: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of one whole step; the parts of its micro-batches add up to it."""

    learned: int
    """Positions with a label, in all micro-batches."""
    rows: int
    """Sequences, in all micro-batches."""
    mtp_weight: float
    """λ, weight of the mean over the prediction depths."""
    balance: tuple[BalanceTerm, ...]
    """Balance losses asked for."""

    @classmethod
    def of(
        cls, batches: Sequence[Batch], mtp_weight: float, balance: tuple[BalanceTerm, ...]
    ) -> "Objective":
        """The objective of a step with these micro-batches."""
        learned = sum(batch.learned for batch in batches)
        rows = sum(len(batch.ids_BS) for batch in batches)
        return cls(learned, rows, mtp_weight, balance)

    def terms(
        self, loss: ModelLoss, trace: RoutingTrace, rows: int, counted_T: Tensor | None
    ) -> dict[str, Term]:
        """What a micro-batch of ``rows`` sequences adds.

        Every prediction depth is divided by the number of learned tokens, as the report does,
        although the last positions of a document have nothing further on to predict. Balance losses
        are means over sequences and layers here; their weights are for the sum over layers.

        Source: DeepSeek-V3 (arXiv 2412.19437) eq. 24–25 for the multi-token term.
        """
        learned = max(self.learned, 1)
        terms = {"next_token": Term(loss.next_token / learned, 1.0)}
        if loss.mtp:
            terms["mtp"] = Term(torch.stack(loss.mtp).mean() / learned, self.mtp_weight)
        layers = len(trace.layers)
        for part in self.balance:
            mean = part.sum(trace, rows, counted_T) / (self.rows * layers)
            terms[part.name] = Term(mean, part.weight * layers)
        return terms


def counted_tokens(batch: Batch) -> Tensor | None:
    """bool [T]: tokens of documents that teach something, so not padding; None where all do."""
    learned_BS = (batch.labels_BS != IGNORED).long()
    documents_BS = batch.documents_BS
    shape = (documents_BS.shape[0], int(documents_BS.max()) + 1)
    of_document = learned_BS.new_zeros(shape).scatter_add_(1, documents_BS, learned_BS)
    counted_BS = of_document.gather(1, documents_BS) > 0
    return None if bool(counted_BS.all()) else counted_BS.flatten()
