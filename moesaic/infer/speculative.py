"""`Drafts`: tokens that the prediction module foretells, as long as that gains time.

Letters: T tokens fed, B sequences, D hidden, V vocabulary.
"""

from collections.abc import Collection
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from moesaic.config.infer import Speculate
from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError
from moesaic.infer.decoder import Decoder, Found
from moesaic.infer.draft import Ahead
from moesaic.infer.pace import Counts, Pace
from moesaic.infer.sequence import Sequence, draw_each

_MOST_UNREAD = 256
"""Positions of a sequence that wait for the module at most: it reads them where it drafts nothing,
too, so that it can draft again."""
_ALIKE = range(3, 7)
"""Binary digits of numbers of positions that are read together where they have as many; fewer count
as the first of these, and more are read alone: rows of a pass are filled to the longest."""


class Drafts:
    """Foretells the next token of sequences, and knows when that gains time.

    A draft is what would be drawn if the module were the model: with the same random number, and
    of the tokens that may follow. The model is fed the token that was decided and its draft
    together. Then tokens are drawn from the model's logits as without drafts; where the one drawn
    first is the draft, the logits after it are those of one more token. So drafts never change a
    token, in whatever passes they are made.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 5.4.3; Daliri, Musco and Suresh 2024 (arXiv
    2408.07978), drafter-invariant speculative decoding.
    """

    def __init__(self, may_stop: bool) -> None:
        """Begin; ``may_stop`` says whether drafts end where they gain no time."""
        self._may_stop = may_stop
        self.paces: dict[int, Pace] = {}
        """Whether drafts gain time, by the number of sequences in a pass: of 2^(n-1) + 1 to 2^n
        sequences under n."""

    @classmethod
    def of(cls, model: ModelConfig, speculate: Speculate, deterministic: bool) -> Self | None:
        """Those that are asked for; None where there are none.

        Args:
            model: with or without a prediction module.
            speculate: whether to draft always, never, or as long as that gains time.
            deterministic: whether time may decide nothing.

        Raises:
            RequestError: if the model has no prediction module, and drafts have to be made.
        """
        has_module = model.num_nextn_predict_layers > 0
        if speculate == "always" and not has_module:
            raise RequestError(
                "the model has no prediction module (num_nextn_predict_layers=0), which makes "
                "drafts; set speculate to auto or never"
            )
        if speculate == "never" or not has_module or (speculate == "auto" and deterministic):
            return None
        return cls(may_stop=speculate == "auto")

    @property
    def is_on(self) -> bool:
        """Whether drafts may gain time with as many sequences as there were in some pass."""
        return not self.paces or any(pace.is_on for pace in self.paces.values())

    def pace(self, n: int) -> Pace:
        """That of passes of so many sequences."""
        return self.paces.setdefault((n - 1).bit_length(), Pace(self._may_stop))


def foretell(
    decoder: Decoder, sequences: Several[Sequence], drafted: Collection[Sequence]
) -> dict[Sequence, int]:
    """Drafts of some sequences, as far as there are any.

    Args:
        decoder: whose module is asked.
        sequences: it is fed what waits of those, where it is much.
        drafted: those of them for which drafts are made; each has a position that waits.
    """
    groups: dict[object, list[tuple[Sequence, Ahead]]] = {}
    for each in sequences:
        ahead = each.ahead
        if ahead and ahead.n_unread >= (1 if each in drafted else _MOST_UNREAD):
            digits = max(ahead.n_unread.bit_length(), _ALIKE.start)
            key = digits if digits in _ALIKE else each
            groups.setdefault(key, []).append((each, ahead))
    drafts: dict[Sequence, int] = {}
    for group in groups.values():
        logits_BV = decoder.draft([ahead.known(each.ids) for each, ahead in group])
        for _, ahead in group:
            ahead.clear()
        rows = [row for row, (each, _) in enumerate(group) if each in drafted]
        asked = [group[row][0] for row in rows]
        tokens = draw_each(asked, logits_BV[rows], foretells=True)
        drafts.update(
            (each, token)
            for each, token in zip(asked, tokens, strict=True)
            if isinstance(token, int)
        )
    return drafts


@dataclass(slots=True)
class Passed:
    """A sequence in a pass, and what came of its draft."""

    sequence: Sequence
    n_fed: int
    """Ids that were decided, of those fed."""
    draft: int | None
    """The last token fed, if it was not decided yet."""
    found: Found
    n_drawn: int = 0
    """Tokens drawn after the pass."""
    is_right: bool = False
    """Whether the first of them is the draft."""

    @property
    def is_running(self) -> bool:
        """Whether the text goes on."""
        return self.sequence.held is not None

    @property
    def logits_V(self) -> Tensor:
        """What the next token is drawn from: those before the draft, and once it was right, those
        after it."""
        return self.found.logits_TV[-1 if self.draft is None or self.is_right else -2]

    def check(self, token: int) -> None:
        """Count a token drawn; a draft in whose place it stands is forgotten."""
        if self.draft is not None and not self.n_drawn:
            assert self.sequence.held is not None
            self.is_right = token == self.draft
            self.sequence.held.length -= not self.is_right
        self.n_drawn += 1

    def keep_unread(self) -> None:
        """Leave the hidden states of all positions that are held to the prediction module."""
        if self.sequence.ahead is not None:
            is_wrong = self.draft is not None and not self.is_right
            hidden_TD = self.found.hidden_TD
            self.sequence.ahead.add(hidden_TD[: len(hidden_TD) - is_wrong])

    def count(self, together: Counts) -> None:
        """Count what drafts came to, in the text and in all together."""
        for counts in (self.sequence.counts, together) if self.n_fed == 1 else ():
            counts.passes += 1
            counts.tokens += self.n_drawn
            counts.drafts += self.draft is not None
            counts.accepted += self.is_right
