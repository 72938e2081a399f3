"""Prompts of any lengths as one batch.

Letters: B sequences, S positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError

Prompt = str | Sequence[int]
"""A text, or the ids of one."""


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Rows filled on the left, so that all of them end with their last token."""

    ids_BS: Tensor
    positions_BS: Tensor | None
    """Position of each token in its prompt; None where no row needs filling."""
    documents_BS: Tensor | None
    """1 for the prompt, 0 for what fills its row; None where no row needs filling."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "PromptBatch":
        """The batch of some rows of ids."""
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + list(row) for row in rows]
        ids_BS = torch.tensor(ids, dtype=torch.int64, device=device)
        if all(len(row) == longest for row in rows):
            return cls(ids_BS, None, None)
        missing = torch.tensor([longest - len(row) for row in rows], device=device).unsqueeze(1)
        place_BS = torch.arange(longest, device=device) - missing
        return cls(ids_BS, place_BS.clamp(min=0), (place_BS >= 0).long())


def encode_prompts(
    prompts: str | Sequence[Prompt],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """Ids of every prompt, ready to be continued.

    Args:
        prompts: one text, or several prompts.
        config: the model they are for.
        tokenizer: needed for texts.
        max_new_tokens: how many tokens are to follow.

    Raises:
        RequestError: if there is none, or one of them is empty, too long, or not of this model's
            vocabulary.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise RequestError("no prompt was given; give at least one")
    names = [f"prompt {place}" for place in range(len(listed))]
    rows = [_encode(*pair, tokenizer) for pair in zip(listed, names, strict=True)]
    for row, name in zip(rows, names, strict=True):
        _check(row, name, config, max_new_tokens)
    return rows


def _encode(prompt: Prompt, name: str, tokenizer: Tokenizer | None) -> list[int]:
    if not isinstance(prompt, str):
        try:
            return [index(id_) for id_ in prompt]
        except TypeError:
            raise RequestError(
                f"{name} is {prompt!r}; give a text, or a list of integer ids"
            ) from None
    if tokenizer is None:
        raise RequestError(f"{name} is a text and needs a tokenizer; give tokenizer, or ids")
    return tokenizer.encode_prompt(prompt)


def _check(row: list[int], name: str, config: ModelConfig, max_new_tokens: int) -> None:
    if not row:
        raise RequestError(f"{name} is empty; give at least one token to go on from")
    for place, id_ in enumerate(row):
        if not 0 <= id_ < config.vocab_size:
            raise RequestError(
                f"{name} has id {id_} at position {place}, vocab_size={config.vocab_size} allows 0 "
                f"to {config.vocab_size - 1}; use the tokenizer that belongs to the model"
            )
    room = config.max_position_embeddings - len(row)
    if max_new_tokens > room:
        fix = f"lower max_new_tokens to {room}" if room > 0 else "shorten the prompt"
        raise RequestError(
            f"{name} has {len(row)} tokens and max_new_tokens={max_new_tokens}: together more than "
            f"max_position_embeddings={config.max_position_embeddings}; {fix}"
        )
