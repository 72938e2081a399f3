"""`Batch`: the running sequences of a `BatchEngine`, and one step of all of them.

Letters: B sequences, T tokens fed, V vocabulary.
"""

from collections.abc import Sequence as Several
from time import monotonic

import torch
from torch import Tensor

from moesaic.config.serve import ServeConfig
from moesaic.errors import RequestError
from moesaic.infer.decoder import Decoder, Fed, Found
from moesaic.infer.job import Piece
from moesaic.infer.meter import Meter
from moesaic.infer.rooms import Rooms
from moesaic.infer.sequence import Sequence, draw_each

Part = tuple[Sequence, int]
"""A sequence, and how many of its ids a pass feeds."""


class Batch:
    """Feeds the sequences that have room; used by one thread."""

    def __init__(self, decoder: Decoder, config: ServeConfig) -> None:
        self.rooms, self.meter = Rooms(decoder.pool, config.deterministic), Meter()
        self.lost: list[Sequence] = []
        """Those that lost their room to others, until the engine lets them wait again."""
        self._decoder, self._config = decoder, config

    @property
    def running(self) -> list[Sequence]:
        """Those that have room, the first to be served first."""
        return self.rooms.running

    def enter(self, sequence: Sequence) -> bool:
        """Let a sequence in if there is room; whether there is."""
        if not self.rooms.enter(sequence):
            return False
        assert sequence.held is not None
        found, is_new = sequence.held.length, sequence.latest_s is None
        if is_new:
            sequence.stream.cached_tokens = found
        self.meter.tokens["prompt" if is_new else "again"] += sequence.n_pending
        self.meter.tokens["found"] += found
        return True

    def step(self) -> None:
        """Feed everyone once."""
        for planned in self._passes():
            for sequence, n in planned:
                if sequence.held is not None:
                    self.lost += self.rooms.widen(sequence, n)
            self._draw(self._feed([part for part in planned if part[0].held is not None]))
        self.meter.steps += 1

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error."""
        self.dismiss(sequence, "failed", error)

    def dismiss(self, sequence: Sequence, how: str, last: Piece | Exception | None) -> None:
        """End a sequence, with the last that its stream gets."""
        if sequence.held is not None:
            self.rooms.leave(sequence)
        if (variant := sequence.stream.job.variant) is not None:
            variant.leave()
        self.meter.requests[how] += 1
        sequence.stream.put(last)

    def _passes(self) -> list[list[Part]]:
        """What goes through a model together: a token of each text that is being written with the
        same weights, and alone each piece of a prompt, since rows of a pass are filled to the
        longest. Prompts are cut at the same places whatever else is fed."""
        most = left = self._config.prefill_tokens
        together: dict[object, list[Part]] = {}
        for sequence in self.running:
            if sequence.n_pending == 1:
                alone = self._config.deterministic
                group = sequence.order if alone else sequence.stream.job.variant
                together.setdefault(group, []).append((sequence, 1))
        passes = list(together.values())
        for sequence in self.running:
            n = min(sequence.n_pending, most)
            if n > left:
                break
            if sequence.n_pending > 1:
                passes.append([(sequence, n)])
                left -= n
        return passes

    def _feed(self, parts: Several[Part]) -> list[tuple[Sequence, Found]]:
        """One pass, or one per sequence if that fails: what it gives for each."""
        if not parts:
            return []
        before = [each.held.length for each, _ in parts if each.held is not None]
        variant = parts[0][0].stream.job.variant
        decoder = self._decoder if variant is None else variant.decoder
        try:
            found = decoder.feed([_fed(*part) for part in parts])
        except Exception as error:  # of one of them, or of the device
            for (sequence, _), length in zip(parts, before, strict=True):
                assert sequence.held is not None
                sequence.held.length = length
            if len(parts) == 1:
                self.fail(parts[0][0], error)
                return []
            return [pair for part in parts for pair in self._feed([part])]
        return [(sequence, each) for (sequence, _), each in zip(parts, found, strict=True)]

    def _draw(self, found: Several[tuple[Sequence, Found]]) -> None:
        """The next token of those whose ids were all fed."""
        for sequence, result in found:
            self._read(sequence, result)
        running = [(each, result) for each, result in found if each.held is not None]
        ready = [(each, result.logits_TV[-1:]) for each, result in running if not each.n_pending]
        if not ready:
            return
        logits_BV = torch.cat([logits for _, logits in ready])
        sequences = [each for each, _ in ready]
        for row, drawn in enumerate(draw_each(sequences, logits_BV)):
            if isinstance(drawn, Exception):
                self.fail(sequences[row], drawn)
            else:
                self._add(sequences[row], drawn, logits_BV[row])

    def _read(self, sequence: Sequence, found: Found) -> None:
        """Tell the tokens of a prompt that is wanted back, or its embedding."""
        assert sequence.held is not None
        start = sequence.held.length - len(found.hidden_TD)
        if sequence.n_to_echo:
            for piece in sequence.echo(start, found.logits_TV):
                sequence.stream.put(piece)
        elif sequence.stream.job.embeds:
            try:
                piece = sequence.read(start, found.hidden_TD)
            except RequestError as error:
                return self.fail(sequence, error)
            if piece is not None:
                self.dismiss(sequence, "complete", piece)

    def _add(self, sequence: Sequence, token: int, logits_V: Tensor) -> None:
        is_first = sequence.latest_s is None
        piece = sequence.add(token, logits_V)
        self._measure(sequence)
        if is_first or piece.ending:
            self.rooms.keep(sequence)
        if piece.ending:
            self.dismiss(sequence, piece.ending, piece)
        else:
            sequence.stream.put(piece)

    def _measure(self, sequence: Sequence) -> None:
        now, meter = monotonic(), self.meter
        if sequence.latest_s is None:
            meter.first_s.add(now - sequence.arrived_s)
        else:
            meter.between_s.add(now - sequence.latest_s)
        sequence.latest_s = now
        meter.tokens["drawn"] += 1


def _fed(sequence: Sequence, n: int) -> Fed:
    held = sequence.held
    assert held is not None
    wants = "last" if n == sequence.n_pending else "none"
    if sequence.n_to_echo:
        wants = "all"
    elif sequence.stream.job.embeds:
        wants = "hidden"
    return Fed(held, tuple(sequence.ids[held.length : held.length + n]), wants)
