"""What a manifest says: what was trained, from what and on what, and who vouches for it.

It names the sha256 of every tensor, so who signs it vouches for all of them. Without a signature it
shows damage, not deceit: who can write the folder can write both.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, JsonValue, NonNegativeInt
from torch import Tensor

from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.folder import inside
from moesaic.checkpoint.header import MAX_HEADER_BYTES, StoredTensor, parse_json
from moesaic.checkpoint.load import Reader
from moesaic.config.esft import Hold, HoldLinears, Variant
from moesaic.config.settings import Settings
from moesaic.data.batch import NOTHING_FED
from moesaic.errors import CheckpointError, ConfigError, ShardError
from moesaic.esft.select import Selection

MANIFEST = "manifest.json"
FORMAT = 3
"""Version of the manifests that are written here, and the only one that is read."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal."""


class Signature(Settings):
    """An Ed25519 signature, and whose it says it is."""

    key: Digest
    """The public key."""
    value: Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
    """Over the bytes that `Manifest.signed` gives."""


Sign = Callable[[bytes], Signature]
"""Makes the signature of a message."""


class Work(Settings):
    """What a slice was trained from, on what, and how long."""

    base: Digest
    """Digest of the checkpoint's tensors."""
    run: dict[str, JsonValue]
    """The run's settings, all of them."""
    variant: Variant = "masked"
    """What the router could choose besides the trained experts."""
    hold: Hold = "weights"
    """How the experts that were not trained were held."""
    hold_linears: HoldLinears = "weights"
    """How the linear layers that were not trained were held."""
    data: Annotated[tuple[str, ...], Field(strict=False)]
    """Names of what was read."""
    fed: Digest = NOTHING_FED
    """Digest of every row that was fed, in order."""
    tokens: NonNegativeInt
    """Positions fed to the model."""
    steps: NonNegativeInt
    """Optimiser steps."""


class Manifest(Settings):
    """What a shard and an adapter say of themselves alike."""

    kind: ClassVar[str]
    """What it is of, in a word."""

    format: Literal[3] = FORMAT
    """Version of this form."""
    model: Digest
    """Digest of the model's settings."""
    work: Work
    """What was trained from, on what, and how long."""
    selection: Selection
    """What was trained, or had adapters, and what was held beside it."""
    tensors: dict[str, Digest]
    """Sha256 of each tensor's bytes, by its name."""
    root: Digest
    """Digest of all tensors: names, types, shapes and bytes."""
    signature: Signature | None = None
    """Of `signed`; None where nobody vouches for it."""

    @property
    def signed(self) -> bytes:
        """What a signature is over: everything else said here, in one order and spacing."""
        values = self.model_dump(mode="json", exclude={"signature"})
        return f"moesaic {self.kind} ".encode() + _canonical(values)

    @property
    def digest(self) -> str:
        """Its one name, signed or not: it stands for every tensor and all that is said."""
        return hashlib.sha256(self.signed).hexdigest()

    def write(self, folder: Path, sign: Sign | None = None) -> Self:
        """Write the manifest, signed where something signs; returns what was written."""
        signature = None if sign is None else sign(self.signed)
        written = self.model_copy(update={"signature": signature})
        text = json.dumps(written.model_dump(mode="json"), indent=1) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        return written

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """What a folder says of itself; nothing is checked against a base or the tensors.

        Raises:
            ShardError: if there is no manifest, or it is not whole.
        """
        path, found = Path(folder) / MANIFEST, _read_json(Path(folder), cls.kind)
        if found.get("format") != FORMAT:
            raise ShardError(
                f"{path}: format={found.get('format')!r} is not {FORMAT}, the one that is read "
                "here; use the version of moesaic that wrote it, or train the slice again"
            )
        try:
            return cls.parse(found, str(path))
        except ConfigError as error:
            raise ShardError(
                f"{error}; the manifest is damaged: fetch the {cls.kind} again"
            ) from None


def read_named(manifest: Manifest, stored: StoredTensor) -> Tensor:
    """A tensor as it is stored, on the CPU, if its bytes are those that a manifest names.

    Raises:
        ShardError: if they are others, or a value is not finite.
    """
    where = f"{stored.path}: tensor {stored.name}"
    try:
        tensor = read_tensor(stored)
    except CheckpointError as error:
        raise ShardError(str(error)) from None
    found = hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
    if found != manifest.tensors.get(stored.name):
        raise ShardError(
            f"{where} does not have the sha256 that the manifest names; it was changed after "
            f"training: fetch the {manifest.kind} again"
        )
    if not tensor.isfinite().all():
        raise ShardError(
            f"{where} holds values that are not finite; leave this {manifest.kind} out, or train "
            "it again"
        )
    return tensor


def digest_of(settings: Settings) -> str:
    """Sha256 of settings: of what differs from the defaults, in one order and spacing."""
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(_canonical(values)).hexdigest()


def read_keys(paths: Collection[Path | str]) -> frozenset[str]:
    """The public keys in PEM files, in hexadecimal.

    Raises:
        ConfigError: if a file holds none.
    """
    if not paths:
        return frozenset()
    from moesaic.esft.sign import read_public_key

    return frozenset(read_public_key(path) for path in paths)


def check_signature(folder: Path, manifest: Manifest, trusted: Collection[str]) -> None:
    """Verify a signature where there is one, and hold its key against those trusted.

    Args:
        folder: where the manifest lies.
        manifest: as it was read.
        trusted: public keys, in hexadecimal; with some, one of them must have signed.

    Raises:
        ConfigError: if it is signed and the package that verifies is not installed.
        ShardError: if the signature does not verify, or is none of those trusted.
    """
    path, kind, signature = folder / MANIFEST, manifest.kind, manifest.signature
    if signature is None:
        if trusted:
            raise ShardError(
                f"{path} is not signed, and only {kind}s signed with a trusted key are merged "
                "here; ask for one that was trained with esft.sign_with, or leave it out"
            )
        return
    if trusted and signature.key not in trusted:
        raise ShardError(
            f"{path} is signed with the key {signature.key[:12]}, which is none of those trusted; "
            f"trust that key too if you know whose it is, or leave the {kind} out"
        )
    from moesaic.esft.sign import verifies

    if not verifies(signature, manifest.signed):
        raise ShardError(
            f"{path} is not what the key {signature.key[:12]} signed; it was changed after "
            f"training: fetch the {kind} again"
        )


def check_origin(folder: Path, manifest: Manifest, base: Reader, base_digest: str) -> None:
    """Hold what a manifest says it was trained from against a checkpoint.

    Raises:
        ShardError: if it is another.
    """
    for what, got, want in (
        ("base", manifest.work.base, base_digest),
        ("a model with the settings", manifest.model, digest_of(base.config)),
    ):
        if got != want:
            raise ShardError(
                f"{folder / MANIFEST}: trained from {what} {got[:12]}, {base.folder} is "
                f"{want[:12]}; fetch the base that the {manifest.kind} was trained from, or train "
                "it again from this one"
            )


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _read_json(folder: Path, kind: str) -> dict[str, Any]:
    try:
        path = inside(folder, MANIFEST)
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise ShardError(f"{path} is too long for a manifest; do not use this {kind}")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ShardError(
            f"{folder / MANIFEST} cannot be read ({error.strerror}); give the folder of a {kind}"
        ) from None
    except CheckpointError as error:
        raise ShardError(str(error)) from None
