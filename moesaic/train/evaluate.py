"""Held-out loss: nats per token, perplexity, bits per byte.

Letters: B sequences, S positions.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Self

import torch

from moesaic.config.train import TrainConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.data.loader import held_out_batches
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Fixed batches of one domain."""

    batches: tuple[Batch, ...]
    n_bytes: int
    """Bytes of the text that is predicted."""

    @classmethod
    def read(cls, config: TrainConfig, domain: str, tokenizer: Tokenizer) -> Self:
        """The held-out rows of one domain of a run.

        Raises:
            DataError: if nothing of the domain is held out.
        """
        assert config.evaluation is not None
        rows = min(config.batch.at_once, config.evaluation.rows)
        count = -(-config.evaluation.rows // rows)
        source = config.evaluation.domains[domain]
        batches = held_out_batches(config.data, tokenizer, rows, count, source)
        if len(batches) == count:
            batches[-1] = batches[-1].rows(0, config.evaluation.rows - (count - 1) * rows)
        return cls(tuple(batches), sum(text_bytes(batch, tokenizer) for batch in batches))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a model predicts a text."""

    loss: float
    """Mean of -log p over the learned tokens, in nats."""
    tokens: int
    """Learned tokens."""
    n_bytes: int
    """Bytes of text they stand for."""

    @property
    def perplexity(self) -> float:
        """Equally likely tokens that would be as hard to tell apart; infinite past float range."""
        return exp(self.loss) if self.loss < 700 else float("inf")

    @property
    def bits_per_byte(self) -> float:
        """Comparable over tokenizers, where the loss per token is not."""
        return self.loss * self.tokens / log(2) / max(self.n_bytes, 1)


@torch.no_grad()
def evaluate(model: Transformer, held_out: HeldOut, autocast: bool = False) -> Evaluation:
    """Next-token loss over fixed batches; nothing of the model changes."""
    device = next(model.parameters()).device
    total, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in held_out.batches:
        is_packed, fed = batch.boundaries is not None, batch.to(device)
        documents_BS = fed.documents_BS if is_packed else None
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = model.loss(fed.ids_BS, fed.labels_BS, fed.positions_BS, documents_BS)
        total += loss.next_token
        tokens += batch.learned
    return Evaluation(total.item() / max(tokens, 1), tokens, held_out.n_bytes)


def text_bytes(batch: Batch, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the learned tokens; special tokens have none.

    A character whose bytes are cut by the end of a row counts as the three of its replacement.
    """
    rows = [labels_S[labels_S != IGNORED].tolist() for labels_S in batch.labels_BS]
    return sum(len(text.encode()) for text in tokenizer.decode_batch(rows))
