"""`Asked`: the jobs of one HTTP request, read together without waiting in a thread."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from moesaic.errors import MoesaicError
from moesaic.infer.batching import BatchEngine
from moesaic.infer.job import Job, Piece


class Asked:
    """Streams of an engine inside an event loop.

    Raises:
        RequestError: if the engine refuses one of the jobs; none is left running then.
    """

    def __init__(self, engine: BatchEngine, jobs: Sequence[Job]) -> None:
        loop, self._came = asyncio.get_running_loop(), asyncio.Event()
        self.jobs = jobs
        self.streams = []
        try:
            for job in jobs:
                wake = lambda: loop.call_soon_threadsafe(self._came.set)  # noqa: E731
                self.streams.append(engine.submit(job, wake))
        except MoesaicError:
            self.cancel()
            raise

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces of all streams as they come, with the index of theirs.

        Raises:
            RequestError: if one of them could not be finished; the others are cancelled.
        """
        try:
            while not all(stream.ended for stream in self.streams):
                self._came.clear()
                for index, stream in enumerate(self.streams):
                    for piece in stream.ready():
                        yield index, piece
                if not all(stream.ended for stream in self.streams):
                    await self._came.wait()
        finally:
            self.cancel()

    async def collect(self) -> list[list[Piece]]:
        """All pieces of each stream."""
        found: list[list[Piece]] = [[] for _ in self.streams]
        async for index, piece in self.pieces():
            found[index].append(piece)
        return found

    def cancel(self) -> None:
        """Ask for no more."""
        for stream in self.streams:
            stream.cancel()
