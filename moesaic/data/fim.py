"""Fill in the middle: a text rearranged so that its end is known before its middle."""

from dataclasses import dataclass
from typing import Self

import torch

from moesaic.data.special import FIM_BEGIN, FIM_END, FIM_HOLE
from moesaic.data.tokenizer import Tokenizer

Piece = str | int
"""Text to encode, or the id of a special token."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """The three tokens that stand before prefix, suffix and middle."""

    begin: int
    hole: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The tokens of a tokenizer that has DeepSeek's.

        Raises:
            DataError: if it lacks one.
        """
        return cls(*(tokenizer.token_id(token) for token in (FIM_BEGIN, FIM_HOLE, FIM_END)))

    def arrange(self, prefix: str, middle: str, suffix: str) -> tuple[Piece, ...]:
        """Prefix, suffix, middle (PSM), each after its token.

        Source: DeepSeek-V3 (arXiv 2412.19437) section 4.1; DeepSeek-Coder (arXiv 2401.14196)
            section 3.1.
        """
        return (self.begin, prefix, self.hole, suffix, self.end, middle)


def fill_in_middle(
    text: str, rate: float, tokens: FimTokens, generator: torch.Generator
) -> tuple[Piece, ...]:
    """The pieces of a text: rearranged with probability ``rate``, else as it is.

    The two cuts fall anywhere between characters, independently and uniformly, so that middles
    begin and end within words as a typist's cursor does.
    """
    if torch.rand((), generator=generator) >= rate:
        return (text,)
    cuts = torch.randint(len(text) + 1, (2,), generator=generator).tolist()
    first, last = sorted(cuts)
    return tokens.arrange(text[:first], text[first:last], text[last:])
