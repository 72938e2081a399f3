"""`Batch`: the running sequences of a `BatchEngine`, and one step of all of them.

Letters: B sequences, T tokens fed, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Several
from time import monotonic, perf_counter

import torch
from torch import Tensor

from moesaic.config.serve import ServeConfig
from moesaic.errors import RequestError
from moesaic.infer.decoder import Decoder, Fed, Found, Wants
from moesaic.infer.job import Piece
from moesaic.infer.meter import Meter
from moesaic.infer.rooms import Rooms
from moesaic.infer.sequence import Sequence, draw_each
from moesaic.infer.speculative import Drafts, Passed, foretell

Part = tuple[Sequence, int]
"""A sequence, and how many of its ids a pass feeds."""


class Batch:
    """Feeds the sequences that have room; used by one thread."""

    def __init__(
        self,
        decoder: Decoder,
        config: ServeConfig,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin with no sequence.

        Args:
            decoder: of sequences that name no variant.
            config: how they are fed, and whether drafts are made.
            clock: tells seconds, to know what drafts gain.

        Raises:
            RequestError: if drafts have to be made, and the model has no prediction module.
        """
        self.rooms, self.meter = Rooms(decoder.pool, config.deterministic), Meter()
        self.lost: list[Sequence] = []
        """Those that lost their room to others, until the engine lets them wait again."""
        self.drafts = Drafts.of(decoder.model.config, config.speculate, config.deterministic)
        """None where none are ever made."""
        self._decoder, self._config, self._clock = decoder, config, clock

    @property
    def running(self) -> list[Sequence]:
        """Those that have room, the first to be served first."""
        return self.rooms.running

    def enter(self, sequence: Sequence) -> bool:
        """Let a sequence in if there is room; whether there is."""
        makes_drafts = self.drafts is not None and self.drafts.is_on
        if not self.rooms.enter(sequence, makes_drafts and not sequence.stream.job.embeds):
            return False
        assert sequence.held is not None
        found, is_new = sequence.held.length, sequence.latest_s is None
        if is_new:
            sequence.stream.cached_tokens = found
        self.meter.tokens["prompt" if is_new else "again"] += sequence.n_pending
        self.meter.tokens["found"] += found
        return True

    def write(self, sequences: Several[Sequence]) -> Iterator[list[list[Piece]]]:
        """New pieces of some sequences, step by step, until all have ended; for who has no others.

        Args:
            sequences: the pool has room for all that is written; some may have theirs already.

        Raises:
            RequestError: if one of them cannot be finished.
        """
        for each in sequences:
            if each.held is not None:
                self.rooms.join(each)
            else:
                has_room = self.enter(each)
                assert has_room
        while any(not each.stream.ended for each in sequences):
            self.step()
            assert not self.lost
            yield [each.stream.ready() for each in sequences]

    def step(self) -> None:
        """Feed everyone once."""
        for planned in self._passes():
            for sequence, n in planned:
                if sequence.held is not None:
                    self.lost += self.rooms.widen(sequence, n)
            if parts := [part for part in planned if part[0].held is not None]:
                self._pass(parts)
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

    def _pass(self, parts: Several[Part]) -> None:
        """Draft where that gains time, feed, and draw."""
        start_s, writes = self._clock(), parts[0][0].n_pending == 1
        pace = self.drafts.pace(len(parts)) if self.drafts and writes else None
        drafted: list[Sequence] = []
        if pace is not None and not pace.is_plain_turn:
            drafted = [sequence for sequence, _ in parts if self._may_draft(sequence)]
        passed = self._feed(parts, drafted)
        self._draw(passed)
        if pace is not None and pace.is_on:
            further = [each.n_drawn - 1 for each in passed]
            has_drafts = any(each.draft is not None for each in passed)
            pace.add(self._clock() - start_s, further if has_drafts else None)
            self._end_drafts()

    def _end_drafts(self) -> None:
        """Where drafts gain nothing any more, the prediction module reads nothing any more."""
        if self.drafts is not None and not self.drafts.is_on:
            for sequence in self.running:
                if sequence.ahead is not None:
                    sequence.ahead.end()

    def _may_draft(self, sequence: Sequence) -> bool:
        """Whether a draft is of use, there is something to draft from, and room for it."""
        ahead, goes_on = sequence.ahead, sequence.written.room > 1 and not sequence.n_to_echo
        return (
            ahead is not None and ahead.n_unread > 0 and goes_on and self.rooms.offer(sequence, 2)
        )

    def _feed(self, parts: Several[Part], drafted: Collection[Sequence]) -> list[Passed]:
        """One pass, or one per sequence if that fails: what it gives for each."""
        sequences = [sequence for sequence, _ in parts]
        before = [each.held.length for each in sequences if each.held is not None]
        variant = sequences[0].stream.job.variant
        decoder = self._decoder if variant is None else variant.decoder
        try:
            drafts = foretell(decoder, sequences, drafted)
            found = decoder.feed([_fed(*part, drafts.get(part[0])) for part in parts])
        except Exception as error:  # of one of them, or of the device
            for sequence, length in zip(sequences, before, strict=True):
                assert sequence.held is not None
                sequence.held.length = length
            if len(parts) == 1:
                self.fail(sequences[0], error)
                return []
            return [each for part in parts for each in self._feed([part], drafted)]
        pairs = zip(parts, found, strict=True)
        return [Passed(each, n, drafts.get(each), got) for (each, n), got in pairs]

    def _draw(self, passed: Several[Passed]) -> None:
        """The next token of those whose ids were all fed, and one more after a right draft."""
        for each in passed:
            self._read(each.sequence, each.found)
        running = [each for each in passed if each.is_running]
        ready = [each for each in running if each.sequence.n_pending <= 0]
        self._take(ready)
        for each in running:
            each.keep_unread()
        self._take([each for each in ready if each.is_right and each.is_running])
        for each in ready:
            each.count(self.meter.drafts)

    def _take(self, passed: Several[Passed]) -> None:
        """A further token of each."""
        if not passed:
            return
        sequences = [each.sequence for each in passed]
        logits_BV = torch.stack([each.logits_V for each in passed])
        for row, drawn in enumerate(draw_each(sequences, logits_BV)):
            if isinstance(drawn, Exception):
                self.fail(sequences[row], drawn)
            else:
                passed[row].check(drawn)
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


def _fed(sequence: Sequence, n: int, draft: int | None) -> Fed:
    held = sequence.held
    assert held is not None
    ids = tuple(sequence.ids[held.length : held.length + n])
    if draft is not None:
        return Fed(held, (*ids, draft), "all")
    wants: Wants = "last" if n == sequence.n_pending else "none"
    if sequence.n_to_echo:
        wants = "all"
    elif sequence.stream.job.embeds:
        wants = "hidden"
    elif sequence.ahead is not None:
        wants = "end" if wants == "last" else "hidden"
    return Fed(held, ids, wants)
