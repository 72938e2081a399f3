"""`ExpertsBeside`: a cache of experts as a variant sees it, some of whose experts are always there.

Letters: E experts of a layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from moesaic.infer.offload import ExpertCache
from moesaic.kernels.native.pack import Rows


class ExpertsBeside:
    """What `ExpertCache` does, for tokens that find some experts in slots outside of the cache.

    All other experts are those of the cache, which it shares with the base and with other variants.
    """

    def __init__(
        self,
        cache: ExpertCache,
        lent: Mapping[int, Mapping[int, int]],
        of_slot: Callable[[int], tuple[Rows, Rows]],
    ) -> None:
        """Begin with the variant's own experts.

        Args:
            cache: of all other experts.
            lent: layer → expert → its slot, behind those of the cache.
            of_slot: gate and up, and down, of what is in a slot.
        """
        self.lock, self.n_slots = cache.lock, cache.n_slots
        self.slots = {layer: slots_E.clone() for layer, slots_E in cache.slots.items()}
        """Of each layer the slot of every expert, int32 [E], as of its latest `need`."""
        self._cache, self._lent, self._of_slot = cache, lent, of_slot
        self._own = {
            layer: (torch.tensor(list(own)), torch.tensor(list(own.values()), dtype=torch.int32))
            for layer, own in lent.items()
        }

    def need(self, layer: int, uses: Mapping[int, int], guess: Iterable[int] = ()) -> None:
        """See `ExpertCache.need`."""
        own, own_next = self._lent.get(layer, {}), self._lent.get(layer + 1, {})
        others = {expert: n for expert, n in uses.items() if expert not in own}
        self._cache.need(layer, others, [each for each in guess if each not in own_next])
        slots_E = self.slots[layer].copy_(self._cache.slots[layer])
        if own:
            ids, places = self._own[layer]
            slots_E[ids] = places

    def each(self, layer: int, uses: Mapping[int, int]) -> Iterator[tuple[int, Rows, Rows]]:
        """See `ExpertCache.each`."""
        own = self._lent.get(layer, {})
        for expert in uses.keys() & own.keys():
            yield expert, *self._of_slot(own[expert])
        others = {expert: n for expert, n in uses.items() if expert not in own}
        yield from self._cache.each(layer, others)
