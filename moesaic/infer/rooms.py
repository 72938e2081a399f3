"""`Rooms`: which sequences have blocks of the pool, and which have to wait for some."""

from bisect import insort

from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.draft import Ahead
from moesaic.infer.prefix import Prefixes
from moesaic.infer.sequence import Sequence


class Rooms:
    """Sequences that are running, the first to be served first.

    Args:
        pool: whose blocks they have.
        in_advance: whether a sequence is let in only with all the room it could need, and computes
            everything itself. Otherwise it begins with room for what it has, finds what others
            computed, and is set back, to be computed again, where one before it needs its room.
    """

    def __init__(self, pool: BlockPool, in_advance: bool) -> None:
        self.running: list[Sequence] = []
        self.prefixes = Prefixes(pool)
        self._pool, self._in_advance = pool, in_advance

    @property
    def n_free(self) -> int:
        """Blocks that could be had."""
        return self._pool.n_free + self.prefixes.n_idle

    def shown(self) -> tuple[int, int]:
        """Blocks that could be had, and those among them or in use that hold prefixes."""
        return self.n_free, len(self.prefixes)

    def enter(self, sequence: Sequence, is_ahead: bool = False) -> bool:
        """Let a sequence in if there is room; whether there is. Alone it always finds room.

        Args:
            sequence: without room.
            is_ahead: whether the prediction module is to read it, too.
        """
        if self._in_advance:
            held, length = Held(self._pool), sequence.most_ids
        else:
            length = len(sequence.ids) + 1
            held = Held(self._pool)
            if not sequence.computes_all:
                held = self.prefixes.begin(sequence.ids, sequence.root(is_ahead))
        length = min(length, sequence.most_ids)
        need = -(-length // self._pool.block) - len(held.blocks)
        if need > self.n_free:
            held.release()
            return False
        self.prefixes.make_free(need)
        held.make_room(length - held.length)
        sequence.held, sequence.ahead = held, Ahead.beside(held) if is_ahead else None
        self.join(sequence)
        return True

    def join(self, sequence: Sequence) -> None:
        """Let a sequence run with the room it has."""
        insort(self.running, sequence, key=lambda each: each.rank)

    def offer(self, sequence: Sequence, more: int) -> bool:
        """Make room for further positions if nobody has to lose any; whether there is."""
        assert sequence.held is not None
        need = -(-(sequence.held.length + more) // self._pool.block) - len(sequence.held.blocks)
        if not self.prefixes.make_free(need):
            return False
        sequence.held.make_room(more)
        return True

    def widen(self, sequence: Sequence, more: int) -> list[Sequence]:
        """Make room for further positions; returns those who lost theirs for it, the last ones
        first. The sequence itself may be among them."""
        lost: list[Sequence] = []
        while sequence not in lost and not self.offer(sequence, more):
            lost.append(self.running[-1])
            self.leave(lost[-1])
        return lost

    def keep(self, sequence: Sequence) -> None:
        """Let others find what this one computed: what its prediction module has read, too, if it
        has one. Of a block's last position that has read the token after it, which may be another
        for those who find it; what it foretells need not be right."""
        if self._in_advance or sequence.held is None or sequence.is_lent:
            return
        ids, ahead = sequence.ids, sequence.ahead
        if ahead is not None:
            ids = ids[: ahead.held.length + 1]
        self.prefixes.keep(ids, sequence.held, sequence.root(ahead is not None))

    def leave(self, sequence: Sequence) -> None:
        """Take back all that a sequence has."""
        self.running.remove(sequence)
        sequence.release()
