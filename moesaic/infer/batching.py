"""`BatchEngine`: requests join and leave between the steps of one running batch."""

from bisect import insort
from collections.abc import Callable
from itertools import count
from threading import Condition, Thread
from time import monotonic

from moesaic.config.model import ModelConfig
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.decoder import Decoder
from moesaic.infer.expert_load import ExpertLoad
from moesaic.infer.held import cache_of
from moesaic.infer.job import BusyError, Job, LateError, Stream
from moesaic.infer.meter import Stats
from moesaic.infer.prompts import encode_prompts
from moesaic.infer.sequence import Sequence
from moesaic.infer.steps import Batch
from moesaic.infer.text import TextStream, Written


class BatchEngine:
    """Continues many texts at once with one model, which one thread of its own feeds.

    A step feeds one token of every text that is being written, together, and a bounded part of the
    prompts that came since, so that a long prompt does not hold up the others. A request is let in
    when there is room for its prompt; where room runs out later, the last one in the order of
    service is set back and computed again. An error of one request ends no other.

    A request draws with its own generator: the same seed gives the same tokens whatever else is
    asked, as far as the logits are the same. Sums of a batch may round otherwise than those of a
    sequence alone, by the last bits; with ``deterministic`` every sequence is fed alone, its prompt
    in the same parts, and its logits are the same to the last bit.

    Source: Yu et al. 2022 (Orca, OSDI) section 4.2; Agrawal et al. 2023 (arXiv 2308.16369) section
    3, where prompts are read in chunks; Kwon et al. 2023 (arXiv 2309.06180) section 4.5, where
    sequences are set back.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None = None,
        config: ServeConfig | None = None,
        load: ExpertLoad | None = None,
    ) -> None:
        """Start the thread. The decoder and its pool belong to the engine until it is closed.

        Args:
            decoder: with the model, and the pool where caches lie.
            tokenizer: for texts and stop texts.
            config: what may run and wait.
            load: where the decoder counts the tokens of experts, to be told of.
        """
        self.config, self._load = config or ServeConfig(), load
        self.decoder, self._tokenizer, self._model = decoder, tokenizer, decoder.model.config
        self._batch = Batch(decoder, self.config)
        self._shown = self._batch.rooms.shown()
        self._waiting: list[Sequence] = []
        self._orders = count()
        self._closing = self._abandons = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="moesaic-batch", daemon=True)
        self._thread.start()

    def submit(self, job: Job, wake: Callable[[], object] | None = None) -> Stream:
        """Ask for a text; any thread may.

        Args:
            job: what is asked.
            wake: see `Stream`.

        Raises:
            RequestError: if the request can never be served, or its variant was closed.
            BusyError: if too many wait, or the engine is closing.
        """
        self._check(job)
        written = Written.begin(self._model, self._tokenizer, job.settings, job.grammar)
        sequence = Sequence.begin(job, written, wake)
        sequence.order = next(self._orders)
        if job.echoes and self._tokenizer:
            sequence.echoed = TextStream(self._tokenizer)
        with self._changed:
            self._check_room()
            if job.variant is not None:
                job.variant.enter()
            self._wait(sequence)
            self._changed.notify()
        return sequence.stream

    def stats(self) -> Stats:
        """How it stands, as of the latest step."""
        cache = cache_of(self.decoder.model)
        return Stats(
            waiting=len(self._waiting),
            running=len(self._batch.running),
            blocks=self.decoder.pool.n_blocks,
            blocks_free=self._shown[0],
            blocks_kept=self._shown[1],
            experts=None if cache is None else cache.counts,
            load=() if self._load is None else tuple(self._load.layers()),
            meter=self._batch.meter,
        )

    @property
    def model(self) -> ModelConfig:
        """What continues the texts."""
        return self._model

    @property
    def cache_bytes(self) -> int:
        """Memory of all blocks."""
        return self.decoder.pool.n_bytes

    def close(self, wait_s: float | None = None) -> None:
        """Take no more requests, end those that there are, and give all blocks back.

        Args:
            wait_s: seconds after which unfinished ones are given up; None takes ``closing_s``.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self.config.closing_s if wait_s is None else wait_s)
        self._abandons = True
        self._thread.join()
        self._batch.rooms.prefixes.clear()
        self._shown = self._batch.rooms.shown()

    def __enter__(self) -> "BatchEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, job: Job) -> None:
        """See that a job could be served alone."""
        settings, pool = job.settings, self.decoder.pool
        encode_prompts([job.prompt_ids], self._model, self._tokenizer, settings.max_new_tokens)
        if settings.stop and self._tokenizer is None:
            raise RequestError(f"stop={settings.stop!r} needs a tokenizer; leave stop out")
        length, most = len(job.prompt_ids) + settings.max_new_tokens, pool.n_blocks * pool.block
        if length > most:
            raise RequestError(
                f"the prompt has {len(job.prompt_ids)} tokens and max_new_tokens is "
                f"{settings.max_new_tokens}: together more than the {most} positions that all "
                "requests may have cached; ask for fewer, or start the server with a larger "
                "cache_tokens"
            )

    def _check_room(self) -> None:
        """See that one more may wait."""
        if self._closing:
            raise BusyError("the server is stopping; ask again when it is back")
        most = self.config.max_running + self.config.max_queue
        if len(self._waiting) + len(self._batch.running) >= most:
            raise BusyError(
                f"{self.config.max_running} requests are running and {self.config.max_queue} wait; "
                "ask again later"
            )

    def _run(self) -> None:
        """What the thread does."""
        while self._has_work():
            try:
                self._step()
            except Exception as error:  # of our own making: whoever waits must not wait forever
                with self._changed:
                    for sequence in list(self._batch.running) or self._waiting[:1]:
                        self._leave(sequence, "failed", error)
            self._shown = self._batch.rooms.shown()

    def _has_work(self) -> bool:
        """Wait for some; False when there will be none."""
        with self._changed:
            while not (self._waiting or self._batch.running):
                if self._closing:
                    return False
                self._changed.wait()
            return True

    def _step(self) -> None:
        """Let requests leave and join, then feed everyone once."""
        with self._changed:
            self._dismiss()
            self._admit()
        try:
            self._batch.step()
        finally:
            with self._changed:
                while self._batch.lost:
                    self._wait(self._batch.lost.pop())

    def _wait(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=lambda each: each.rank)

    def _admit(self) -> None:
        """Let in those who wait, one after the other: nobody overtakes one who needs more room."""
        while self._waiting and len(self._batch.running) < self.config.max_running:
            if not self._batch.enter(self._waiting[0]):
                return
            self._waiting.pop(0)

    def _dismiss(self) -> None:
        """Let go of those who were cancelled, or are late."""
        now = monotonic()
        for sequence in [*self._waiting, *self._batch.running]:
            late = now - sequence.arrived_s > self.config.timeout_s
            if sequence.stream.cancelled or self._abandons:
                self._leave(sequence, "cancelled", None)
            elif late:
                error = LateError(
                    f"the request was not finished within {self.config.timeout_s:g} s; ask for "
                    "fewer tokens, or again when less is asked"
                )
                self._leave(sequence, "late", error)

    def _leave(self, sequence: Sequence, how: str, error: Exception | None) -> None:
        if sequence.held is None:
            self._waiting.remove(sequence)
        self._batch.dismiss(sequence, how, error)
