"""Signed shards: whose are merged, and every reason not to."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from slices import flip_last_bit

from moesaic.config.merge import MergeConfig
from moesaic.errors import ConfigError, ShardError
from moesaic.esft.merge import merge_shards
from moesaic.esft.shard import ShardManifest
from moesaic.esft.sign import read_private_key, read_public_key, sign

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]


@pytest.fixture
def base(make_base: MakeBase) -> Path:
    return make_base("v2")


@pytest.fixture
def signed(base: Path, make_shard: MakeShard, keys: Path) -> Path:
    """A shard signed with ``alice.pem``; ``bob.pub`` is another key."""
    key = read_private_key(keys / "alice.pem")
    return make_shard("signed", base, sign=partial(sign, key=key))


def _merge(base: Path, shard: Path, *trusted: str) -> Any:
    config = MergeConfig(trusted=tuple(str(base.parent / name) for name in trusted))
    return merge_shards(base, [shard], base.parent / "merged", config=config)


def _change(shard: Path, **values: Any) -> None:
    path = shard / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("trusted", [(), ("alice.pub",), ("bob.pub", "alice.pub")])
def test_a_shard_signed_with_a_trusted_key_is_merged(
    trusted: tuple[str, ...], base: Path, signed: Path
) -> None:
    merge = _merge(base, signed, *trusted)
    (told,) = merge.record()["shards"].values()
    assert told["signed_by"] == read_public_key(base.parent / "alice.pub")


def test_a_shard_is_one_shard_signed_or_not(
    base: Path, signed: Path, make_shard: MakeShard
) -> None:
    plain = make_shard("plain", base)
    assert ShardManifest.read(plain).digest == ShardManifest.read(signed).digest
    with pytest.raises(ShardError, match="is the same shard as"):
        merge_shards(base, [plain, signed], base.parent / "merged")


def test_an_unsigned_shard_is_refused_where_keys_are_trusted(
    base: Path, signed: Path, make_shard: MakeShard
) -> None:
    message = r"plain/manifest\.json is not signed, and only .*trained with esft\.sign_with"
    with pytest.raises(ShardError, match=message):
        _merge(base, make_shard("plain", base), "alice.pub")
    assert not (base.parent / "merged").exists()


def test_a_shard_signed_with_another_key_is_refused(base: Path, signed: Path) -> None:
    message = r"signed with the key \w{12}, which is none of those trusted; trust that key too if"
    with pytest.raises(ShardError, match=message):
        _merge(base, signed, "bob.pub")


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "float16"},
        {"selection": {"experts": {"1": [1, 2, 5], "2": [0, 3, 6]}}},
        {"root": "2" * 64},
    ],
)
@pytest.mark.parametrize("trusted", [(), ("alice.pub",)])
def test_a_manifest_changed_after_signing_is_refused(
    trusted: tuple[str, ...], values: dict[str, Any], base: Path, signed: Path
) -> None:
    _change(signed, **values)
    with pytest.raises(ShardError, match=r"is not what the key \w{12} signed; it was changed"):
        _merge(base, signed, *trusted)


@pytest.mark.parametrize("name", ["tokens", "steps", "data", "run", "fed", "base", "variant"])
def test_everything_that_is_said_of_the_work_is_signed(name: str, base: Path, signed: Path) -> None:
    work = json.loads((signed / "manifest.json").read_text())["work"]
    other = {"tokens": 10**9, "data": ["x"], "run": {}, "variant": "natural"}.get(name, 7)
    _change(signed, work={**work, name: "7" * 64 if name in ("fed", "base") else other})
    with pytest.raises(ShardError, match=r"is not what the key \w{12} signed"):
        _merge(base, signed)


def test_another_tensor_under_a_signed_manifest_is_refused(base: Path, signed: Path) -> None:
    flip_last_bit(signed / "shard.safetensors")
    with pytest.raises(ShardError, match="does not have the sha256 that the manifest names"):
        _merge(base, signed, "alice.pub")


@pytest.mark.parametrize("key", ["bob.pub", None])
def test_a_signature_of_another_key_does_not_verify(
    key: str | None, base: Path, signed: Path
) -> None:
    signature = json.loads((signed / "manifest.json").read_text())["signature"]
    no_point = "02" + "0" * 62  # of the curve
    signature["key"] = read_public_key(base.parent / key) if key else no_point
    _change(signed, signature=signature)
    with pytest.raises(ShardError, match=r"is not what the key \w{12} signed"):
        _merge(base, signed)


def test_without_the_package_it_is_named(
    base: Path, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "moesaic.esft.sign")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    message = r"signatures need the package cryptography, .*pip install 'moesaic\[sign\]'"
    for trusted in ((), ("alice.pub",)):
        with pytest.raises(ConfigError, match=message):
            _merge(base, signed, *trusted)


def test_files_that_hold_no_key_are_refused(
    base: Path, signed: Path, write_key: Callable[..., None]
) -> None:
    home = base.parent
    (home / "text").write_text("no key")
    write_key(home, "elliptic", generate_private_key(SECP256R1()))
    write_key(home, "secret", read_private_key(home / "alice.pem"), b"word")
    for name in ("text", "elliptic.pem", "alice.pub"):
        with pytest.raises(ConfigError, match=f"{name} holds no Ed25519 private key in PEM; make"):
            read_private_key(home / name)
    for name in ("text", "elliptic.pub", "alice.pem"):
        with pytest.raises(ConfigError, match=f"{name} holds no Ed25519 public key in PEM; write"):
            read_public_key(home / name)
    with pytest.raises(ConfigError, match=r"secret\.pem is encrypted; decrypt it with: openssl"):
        read_private_key(home / "secret.pem")
    with pytest.raises(ConfigError, match=r"none\.pub cannot be read \(No such file"):
        _merge(base, signed, "none.pub")
