"""Answers to `Generation`: prompts continued in batches."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from moesaic.config.eval import EvalConfig
from moesaic.config.infer import GenerateConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.eval.encode import Encoder, Ids
from moesaic.eval.requests import Generation, GenerationAnswer
from moesaic.eval.texts import shared_beginning, write_texts
from moesaic.model.transformer import Transformer

_HELD = 4
"""Tokens of prompts and answers held together, by those fed at once, which take more room."""


@dataclass(frozen=True, slots=True)
class _Manner:
    """What texts that are written together have in common."""

    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Writer:
    """Continues prompts with a model."""

    model: Transformer
    encoder: Encoder
    config: EvalConfig
    batch_tokens: int
    """As in the settings."""
    _stopping: dict[tuple[str, ...], Tokenizer] = field(default_factory=dict)

    def answers(
        self, requests: Mapping[int, Generation], known: Collection[int]
    ) -> Iterator[tuple[int, GenerationAnswer]]:
        """The answers that are not known, by the places of their requests."""
        alike: dict[_Manner, list[int]] = {}
        for place, request in requests.items():
            alike.setdefault(self._manner(request), []).append(place)
        for manner, places in alike.items():
            prompts = self.encoder.prompts(
                [requests[place].prompt for place in places],
                manner.max_new_tokens,
                self.config.chat,
            )
            rows = dict(zip(places, prompts, strict=True))
            shared = shared_beginning(prompts)
            for batch in self._batches(rows, shared, manner):
                if any(place not in known for place in batch):
                    asked = {place: rows[place] for place in batch}
                    yield from self._written(asked, shared, manner, known)

    def _manner(self, request: Generation) -> _Manner:
        most = self.config.max_new_tokens or request.max_new_tokens
        return _Manner(tuple(filter(None, request.stop)), most, request.temperature)

    def _batches(
        self, rows: Mapping[int, Ids], shared: int, manner: _Manner
    ) -> Iterator[list[int]]:
        """Places of prompts to continue together, longest first.

        Where tokens are drawn they stay in their order, without gaps: the seed of a text follows
        from its place in the batch.
        """
        drawn = manner.temperature > 0
        batch: list[int] = []
        longest = 0
        for place in rows if drawn else sorted(rows, key=lambda place: -len(rows[place])):
            longest = max(longest, len(rows[place]))
            held = (len(batch) + 1) * (longest - shared + manner.max_new_tokens)
            gap = drawn and batch and place != batch[-1] + 1
            if batch and (gap or held > _HELD * self.batch_tokens):
                yield batch
                batch, longest = [], len(rows[place])
            batch.append(place)
        yield batch

    def _written(
        self, rows: Mapping[int, Ids], shared: int, manner: _Manner, known: Collection[int]
    ) -> Iterator[tuple[int, GenerationAnswer]]:
        """One batch."""
        asked = GenerateConfig(
            max_new_tokens=manner.max_new_tokens,
            temperature=manner.temperature,
            top_p=1.0,
            stop=manner.stop,
            seed=self.config.seed + min(rows),
        )
        tokenizer = self._tokenizer(manner.stop)
        texts = write_texts(self.model, list(rows.values()), shared, tokenizer, asked)
        yield from ((at, text) for at, text in zip(rows, texts, strict=True) if at not in known)

    def _tokenizer(self, stop: tuple[str, ...]) -> Tokenizer:
        """The tokenizer, with special tokens that are named as a stop among those that end a text:
        they stand for no text in which the stop could be found."""
        if stop not in self._stopping:
            tokenizer = self.encoder.tokenizer
            encoded = [tokenizer.encode(text, special=True) for text in stop]
            ends = [ids[0] for ids in encoded if len(ids) == 1 and ids[0] in tokenizer.special_ids]
            known = tokenizer.eos_ids
            self._stopping[stop] = (
                replace(tokenizer, eos_ids=tuple(dict.fromkeys((*known, *ends))))
                if set(ends) - set(known)
                else tokenizer
            )
        return self._stopping[stop]
