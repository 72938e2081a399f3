"""`Shards`: what was trained from a base, served beside it under names of their own."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import time

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.load import Reader
from moesaic.errors import ShardError, suggest
from moesaic.esft.check import check_shard
from moesaic.esft.manifest import digest_of
from moesaic.esft.overlay import overlay
from moesaic.esft.shard import Shard, ShardManifest
from moesaic.infer.decoder import Decoder
from moesaic.infer.spare import SpareExperts
from moesaic.infer.variant import Variant
from moesaic.model.transformer import Transformer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A shard that requests may ask for."""

    name: str
    shard: Shard
    variant: Variant
    since: int = field(default_factory=lambda: int(time()))
    """Seconds since 1970."""


class Shards:
    """A base that was verified, and shards that were verified against it.

    A shard answers as the checkpoint would that `merge_shards` makes of it alone. Of its weights
    only those that it trained are held.
    """

    def __init__(
        self,
        base: Reader,
        spare: SpareExperts,
        decode: Callable[[Transformer], Decoder],
        trusted: Collection[str] = (),
    ) -> None:
        """Begin with none.

        Args:
            base: what the model was read from.
            spare: the model's room for experts.
            decode: makes a decoder over the engine's pool.
            trusted: public keys, in hexadecimal; with some, only shards signed with one of them.
        """
        self._base, self._spare, self._decode, self._trusted = base, spare, decode, trusted
        self._loaded: dict[str, Loaded] = {}
        self._changing = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that are loaded."""
        return tuple(self._loaded)

    def list(self) -> list[Loaded]:
        """Those that are loaded, in the order they came."""
        return [*self._loaded.values()]

    def find(self, name: str) -> Loaded | None:
        """The shard of a name, if there is one."""
        return self._loaded.get(name)

    def load(self, name: str, folder: Path | str) -> Loaded:
        """Verify a shard and serve it; every byte of it is read, other requests go on meanwhile.

        Args:
            name: letters, digits, and ``._-`` after the first.
            folder: the shard.

        Raises:
            ShardError: if the name cannot be had, or the shard is not one of this base, damaged, or
                not signed as it should be.
            CheckpointError: if the base changed on disk.
            RequestError: if there is no room for its experts.
        """
        with self._changing:
            self._check_name(name)
            shard = check_shard(folder, self._base, digest(self._base.folder), self._trusted)
            slots = self._spare.lend(shard.manifest.selection.experts if shard.tokens else {})
            try:
                model = self._spare.variant(slots, overlay(self._base, shard))
                root = bytes.fromhex(shard.manifest.digest)
                variant = Variant(root, self._decode(model), lambda: self._spare.give_back(slots))
            except BaseException:
                self._spare.give_back(slots)
                raise
            self._loaded[name] = loaded = Loaded(name, shard, variant)
        return loaded

    def unload(self, name: str) -> None:
        """Let no request begin that asks for a shard; its room is free when the last has ended.

        Raises:
            ShardError: if no shard has the name.
        """
        with self._changing:
            loaded = self._loaded.pop(name, None)
        if loaded is None:
            raise ShardError(f"there is no shard {name!r} here{suggest(name, self.names)}")
        loaded.variant.close()

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ShardError(
                f"{name!r} cannot be the name of a shard; take letters and digits, and . _ - after "
                "the first, 64 at most"
            )
        if name in self._loaded:
            raise ShardError(f"a shard {name!r} is loaded; unload it, or give another name")


def room_for(folders: Iterable[Path | str], base: Reader, more: int) -> Mapping[int, int]:
    """Slots that some shards need in each layer with experts, and some more in all of them.

    Raises:
        ShardError: if a folder has no manifest of a shard of this base's model.
    """
    config = base.config
    depth = config.num_hidden_layers + config.num_nextn_predict_layers
    room = {layer: more for layer in range(depth) if config.has_experts(layer)}
    for folder in folders:
        manifest = ShardManifest.read(Path(folder))
        if manifest.model != digest_of(config):
            raise ShardError(
                f"{folder}: trained from a model with other settings than {base.folder}; give the "
                "shards of this base"
            )
        for layer, ids in manifest.selection.experts.items():
            room[layer] = room.get(layer, 0) + len(ids)
    return {layer: n for layer, n in room.items() if n}
