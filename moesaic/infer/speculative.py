"""`Speculation`: the prediction module drafts a token, and the model checks it while it reads on.

Letters: T tokens fed, D hidden, V vocabulary, B sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError
from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Decoder, Fed, Found, Known
from moesaic.infer.draft import Draft, guess, verify
from moesaic.infer.pace import Counts, Pace
from moesaic.infer.sample import sample

_AT_ONCE = 256
"""Positions of prompts that are fed at a time: the hidden states of all of them are needed."""


class Speculation:
    """Draws the tokens that follow some prompts, up to two of each in a pass.

    Without temperature the tokens are the model's own, one by one. With it, they are distributed as
    the model's own, and a seed gives the same ones again unless the pace lets the clock decide
    where drafts end.

    Source: Leviathan et al. 2023 (arXiv 2211.17192) algorithm 1, with one draft; drafts by
    DeepSeek-V3 (arXiv 2412.19437) section 5.4.3.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        config: GenerateConfig,
        pace: Pace,
        held: Sequence[Held] | None = None,
    ) -> None:
        """Prepare; nothing is fed yet.

        Args:
            decoder: its pool has room for the prompts and all that is drawn.
            prompts: ids of each.
            config: how to draw.
            pace: whether drafts end where they gain no time; it may have seen other texts.
            held: what is held of each text before its prompt, of the model and of its prediction
                module alike; None where that is nothing.

        Raises:
            RequestError: if the model has no prediction module.
        """
        if not decoder.model.config.num_nextn_predict_layers:
            raise RequestError(
                "the model has no prediction module (num_nextn_predict_layers=0), which makes "
                "drafts; generate without speculation"
            )
        self.pace = pace
        self._decoder, self._config = decoder, config
        self._texts = [
            _Text.begin(before, prompt, config, config.seed + place)
            for place, (before, prompt) in enumerate(
                zip(held or [Held(decoder.pool) for _ in prompts], prompts, strict=True)
            )
        ]

    @property
    def counts(self) -> list[Counts]:
        """Of each text, so far."""
        return [text.counts for text in self._texts]

    @property
    def n_ahead(self) -> list[int]:
        """Positions of each text that the prediction module has read."""
        return [text.ahead.length for text in self._texts]

    def draw(self) -> Iterator[list[tuple[int, ...]]]:
        """New tokens of every text, pass by pass; none of a text that has all of them, and none
        while prompts are read."""
        yield from self._read_prompts()
        yield [(text.token,) for text in self._texts]
        while any(goes_on := [text.left > 0 for text in self._texts]):
            drawn = iter(self._step(list(compress(self._texts, goes_on))))
            yield [next(drawn) if more else () for more in goes_on]

    def _read_prompts(self) -> Iterator[list[tuple[int, ...]]]:
        """Feed all prompts in pieces, to the model and to its prediction module, and draw."""
        texts = self._texts
        most = max(1, _AT_ONCE // len(texts))
        last: dict[int, Found] = {}
        for start in range(0, max(len(text.prompt) for text in texts), most):
            if start:
                yield [() for _ in texts]
            some = [text for text in texts if len(text.prompt) > start]
            found = self._decoder.feed([text.part(start, most) for text in some])
            last.update((id(text), got) for text, got in zip(some, found, strict=True))
            known = [
                Known(text.ahead, after, got.hidden_TD[: len(after)])
                for text, got in zip(some, found, strict=True)
                if (after := tuple(text.prompt[start + 1 : start + most + 1]))
            ]
            if known:
                self._decoder.draft(known)
        ends = [last[id(text)] for text in texts]
        drawn = [
            tuple(sample(end.logits_TV[-1:], self._config, [text.generator]).tolist())
            for text, end in zip(texts, ends, strict=True)
        ]
        for text, ids, end in zip(texts, drawn, ends, strict=True):
            text.take(ids)
            text.known.append((ids, end.hidden_TD[-1:]))

    def _step(self, texts: list["_Text"]) -> list[tuple[int, ...]]:
        """One pass over some texts; the new tokens of each."""
        start = self.pace.clock()
        if not self.pace.is_plain_turn:
            self._draft([text for text in texts if text.left > 1])
        fed = [Fed(text.held, text.next_ids(), "all") for text in texts]
        found = self._decoder.feed(fed)
        drawn = [
            text.verify(one.ids, got, self._config)
            for text, one, got in zip(texts, fed, found, strict=True)
        ]
        took_s, each = self.pace.clock() - start, list(zip(fed, drawn, strict=True))
        if accepted := [len(ids) - 1 for one, ids in each if len(one.ids) > 1]:
            self.pace.add_drafted(took_s, accepted)
        else:
            self.pace.add_plain(took_s)
        if not self.pace.is_on:
            for text in texts:
                text.known.clear()
        return drawn

    def _draft(self, texts: Sequence["_Text"]) -> None:
        """Feed the module what is known of some texts, and draw a draft for each."""
        if not texts:
            return
        logits_BV = self._decoder.draft([text.take_known() for text in texts])
        drafts = guess(logits_BV, self._config, [text.generator for text in texts])
        for text, draft in zip(texts, drafts, strict=True):
            text.draft = draft


@dataclass(slots=True)
class _Text:
    """One text being written."""

    prompt: Sequence[int]
    held: Held
    ahead: Held
    """What is held of the prediction module, in the same blocks: it is never ahead of the model."""
    generator: torch.Generator
    left: int
    """Tokens that are still to be drawn."""
    token: int = 0
    """Drawn last, and not fed yet."""
    draft: Draft | None = None
    """Of the token after it."""
    known: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)
    """Tokens drawn, and hidden states of those before, that the module was not fed yet."""
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def begin(cls, held: Held, prompt: Sequence[int], config: GenerateConfig, seed: int) -> "_Text":
        generator = torch.Generator().manual_seed(seed)
        ahead = Held(held.pool, held.blocks, held.length)
        return cls(prompt, held, ahead, generator, config.max_new_tokens)

    def part(self, start: int, most: int) -> Fed:
        """What to feed of the prompt: logits are asked for with its end alone."""
        ids = tuple(self.prompt[start : start + most])
        return Fed(self.held, ids, "hidden" if start + most < len(self.prompt) else "all")

    def take_known(self) -> Known:
        """What the prediction module was not fed yet."""
        ids = tuple(token for drawn, _ in self.known for token in drawn)
        hidden_TD = torch.cat([hidden for _, hidden in self.known])
        self.known.clear()
        return Known(self.ahead, ids, hidden_TD)

    def next_ids(self) -> tuple[int, ...]:
        """What to feed."""
        return (self.token, self.draft.token) if self.draft else (self.token,)

    def verify(self, ids: tuple[int, ...], found: Found, config: GenerateConfig) -> tuple[int, ...]:
        """New tokens after ``ids`` were fed; a draft among them that is wrong is forgotten."""
        if self.draft is not None:
            drawn = verify(self.draft, found.logits_TV, config, self.generator)
            self.counts.drafts += 1
            self.counts.accepted += len(drawn) - 1
        else:
            drawn = tuple(sample(found.logits_TV, config, [self.generator]).tolist())
        self.held.cut(self.held.length - len(ids) + len(drawn))
        self.counts.passes += 1
        self.counts.tokens += len(drawn)
        self.take(drawn)
        self.known.append((drawn, found.hidden_TD[: len(drawn)]))
        return drawn

    def take(self, drawn: tuple[int, ...]) -> None:
        """Count new tokens; the draft is used up."""
        self.left -= len(drawn)
        self.token, self.draft = drawn[-1], None
