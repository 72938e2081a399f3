"""`Sequence`: one request inside a `BatchEngine`, and how its tokens are drawn.

Letters: B sequences, T tokens fed, D hidden, V vocabulary.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from time import monotonic
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import RequestError
from moesaic.infer.blocks import Held
from moesaic.infer.draft import Ahead
from moesaic.infer.grammar import forbid
from moesaic.infer.job import Job, Piece, Stream
from moesaic.infer.pace import Counts
from moesaic.infer.sample import sample
from moesaic.infer.text import TextStream, Written


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was drawn after it."""

    stream: Stream
    written: Written
    generator: torch.Generator
    ids: list[int]
    """Of the prompt, and those drawn."""
    order: int = 0
    """Which request it is, counted from 0."""
    arrived_s: float = field(default_factory=monotonic)
    echoed: TextStream | None = None
    """The text of the prompt, as far as it was told."""
    held: Held | None = None
    """What is cached of them; None while it waits."""
    ahead: Ahead | None = None
    """What the prediction module has of them; None where no drafts are made."""
    is_lent: bool = False
    """Whether what is cached is somebody else's, and stays when the sequence ends."""
    n_echoed: int = 0
    """Tokens of the prompt that were told."""
    read_D: Tensor | None = None
    """Sum of the hidden states so far, where they are wanted."""
    latest_s: float | None = None
    """When its latest token was drawn; None before the first."""
    counts: Counts = field(default_factory=Counts)
    """What drafts came to."""

    @classmethod
    def begin(cls, job: Job, written: Written, wake: Callable[[], object] | None = None) -> Self:
        """A job of which nothing is done yet."""
        generator = torch.Generator().manual_seed(job.settings.seed)
        return cls(Stream(job, wake), written, generator, list(job.prompt_ids))

    @property
    def rank(self) -> tuple[int, int]:
        """Lower ones go first."""
        return self.stream.job.priority, self.order

    def root(self, is_ahead: bool) -> bytes:
        """What tells its cached prompt from the same prompt under other weights, or without what
        the prediction module has of it."""
        variant = self.stream.job.variant
        return (b"" if variant is None else variant.root) + (b"ahead" if is_ahead else b"")

    @property
    def n_pending(self) -> int:
        """Ids that were not fed yet."""
        assert self.held is not None
        return len(self.ids) - self.held.length

    @property
    def most_ids(self) -> int:
        """Ids it has in the end, at most."""
        job = self.stream.job
        return len(job.prompt_ids) + job.settings.max_new_tokens

    @property
    def n_to_echo(self) -> int:
        """Tokens of the prompt that are still to be told."""
        job = self.stream.job
        return len(job.prompt_ids) - self.n_echoed if job.echoes else 0

    @property
    def computes_all(self) -> bool:
        """Whether it needs every position of its prompt, also those that others computed."""
        return self.n_to_echo > 0 or self.stream.job.embeds

    def read(self, start: int, hidden_TD: Tensor) -> Piece | None:
        """Take hidden states; when all are there, the embedding.

        Args:
            start: the first of their positions; from 0 on the text is read anew.
            hidden_TD: of the positions.

        Raises:
            RequestError: if one of them is not a number.
        """
        more_D = hidden_TD.double().sum(dim=0)
        self.read_D = more_D if self.read_D is None or not start else self.read_D + more_D
        if self.n_pending:
            return None
        if not torch.isfinite(self.read_D).all():
            raise RequestError(
                "the model's hidden states are not finite; load it in float32, or run "
                "`moesaic check` on its folder"
            )
        embedding_D = F.normalize(self.read_D, dim=0).float().cpu()
        return Piece(self.ids[-1], "", "complete", of_prompt=True, embedding_D=embedding_D)

    def echo(self, start: int, logits_TV: Tensor) -> list[Piece]:
        """The tokens of the prompt that follow these positions, and at first the one before all.

        Args:
            start: the first of the positions.
            logits_TV: of the positions.
        """
        job, pieces = self.stream.job, list[Piece]()
        while self.n_to_echo and self.n_echoed <= start + len(logits_TV):
            token, told = job.prompt_ids[self.n_echoed], (None, ())
            if job.top_logprobs is not None and self.n_echoed:
                told = _logprobs(logits_TV[self.n_echoed - start - 1], token, job.top_logprobs)
            text = "" if self.echoed is None else self.echoed.push(token)
            self.n_echoed += 1
            if self.echoed is not None and not self.n_to_echo:
                text += self.echoed.finish()
            pieces.append(Piece(token, text, None, *told, of_prompt=True))
        return pieces

    def add(self, token: int, logits_V: Tensor) -> Piece:
        """Take the token drawn from these logits."""
        self.ids.append(token)
        text = self.written.add(token)
        most = self.stream.job.top_logprobs
        if most is None:
            return Piece(token, text, self.written.ending)
        return Piece(token, text, self.written.ending, *_logprobs(logits_V, token, most))

    def release(self) -> None:
        """Give back what is cached."""
        if self.held is not None and not self.is_lent:
            self.held.release()
        self.held = self.ahead = None


def draw_each(
    sequences: Several[Sequence], logits_BV: Tensor, foretells: bool = False
) -> list[int | RequestError]:
    """The next token of every sequence by its own settings, or why there is none.

    Sequences with the same settings are drawn together; each takes one random number from its own
    generator, so that none depends on its neighbours.

    Args:
        sequences: whose tokens are drawn.
        logits_BV: of each.
        foretells: whether nothing is taken: the next token is drawn with the same random number.
    """
    logits_BV, failed = forbid(logits_BV, [each.written.course for each in sequences])
    groups: dict[object, list[int]] = {}
    for row, sequence in enumerate(sequences):
        if row not in failed:
            settings = sequence.stream.job.settings
            kind = settings.temperature, settings.top_k, settings.top_p
            groups.setdefault(kind, []).append(row)
    drawn: dict[int, int | RequestError] = {**failed}
    for rows in groups.values():
        chosen_BV = logits_BV if len(rows) == len(sequences) else logits_BV[rows]
        alike = [sequences[row] for row in rows]
        drawn.update(zip(rows, _draw_alike(alike, chosen_BV, foretells), strict=True))
    return [drawn[row] for row in range(len(sequences))]


def _draw_alike(
    sequences: Several[Sequence], logits_BV: Tensor, foretells: bool
) -> Several[int | RequestError]:
    """The same for sequences with the same settings."""
    settings = sequences[0].stream.job.settings
    generators = [each.generator for each in sequences]
    if foretells and settings.temperature:
        generators = [each.clone_state() for each in generators]
    try:
        return sample(logits_BV, settings, generators).tolist()
    except RequestError as error:  # nothing is drawn then
        if len(sequences) == 1:
            return [error]
        rows = zip(sequences, logits_BV.split(1), strict=True)
        return [_draw_alike([each], row_BV, foretells)[0] for each, row_BV in rows]


def _logprobs(
    logits_V: Tensor, token: int, most: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """That of the token, and the highest."""
    logprobs_V = logits_V.double().log_softmax(dim=-1)
    values, ids = logprobs_V.topk(min(most, len(logprobs_V)))
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return float(logprobs_V[token]), best
