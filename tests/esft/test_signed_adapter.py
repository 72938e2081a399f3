"""Adapters that are signed, trusted, refused, and undone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from esft.adapters import MakeBase, rewritten, signer, trusting, written

from moesaic.checkpoint.digest import digest
from moesaic.config.merge import Conditions
from moesaic.errors import ShardError
from moesaic.esft.absorb import merge_adapter
from moesaic.esft.adapter import AdapterManifest
from moesaic.esft.shard import ShardManifest
from moesaic.esft.sign import read_public_key
from moesaic.esft.undo import undo_merge


@pytest.mark.parametrize("trusted", [(), ("alice.pub",), ("bob.pub", "alice.pub")])
def test_an_adapter_signed_with_a_trusted_key_is_merged(
    trusted: tuple[str, ...], make_base: MakeBase, keys: Path
) -> None:
    base = make_base("v2")
    adapter = written(keys / "adapter", base, sign=signer(keys / "alice.pem"))
    found = merge_adapter(base, adapter, keys / "merged", conditions=trusting(keys, *trusted))
    assert found.adapter.manifest is not None
    assert found.adapter.manifest.signature is not None
    assert found.adapter.manifest.signature.key == read_public_key(keys / "alice.pub")


@pytest.mark.parametrize(
    ("made_by", "trusted", "message"),
    [
        ("nobody", "alice.pub", r"is not signed, and only adapters signed with a trusted key are"),
        ("alice", "bob.pub", r"signed with the key \w{12}, which is none of those trusted; trust"),
        (
            "peft",
            "alice.pub",
            r"has no manifest\.json, and only adapters signed with a trusted key",
        ),
    ],
)
def test_an_adapter_of_somebody_else_is_refused(
    made_by: str, trusted: str, message: str, make_base: MakeBase, keys: Path
) -> None:
    base = make_base("v2")
    sign = signer(keys / "alice.pem") if made_by == "alice" else None
    adapter = written(keys / "adapter", base, sign=sign)
    if made_by == "peft":
        rewritten(adapter)
    with pytest.raises(ShardError, match=message):
        merge_adapter(base, adapter, keys / "merged", conditions=trusting(keys, trusted))
    assert not (keys / "merged").exists()


def test_an_adapter_changed_after_signing_is_refused(make_base: MakeBase, keys: Path) -> None:
    base = make_base("v2")
    path = written(keys / "adapter", base, sign=signer(keys / "alice.pem")) / "manifest.json"
    path.write_text(path.read_text().replace('"tokens": 100', '"tokens": 900'))
    with pytest.raises(ShardError, match=r"is not what the key \w{12} signed; it was changed"):
        merge_adapter(base, keys / "adapter", keys / "merged")


def test_a_shard_and_an_adapter_of_one_saying_have_two_signatures(
    make_base: MakeBase, make_shard: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_base("v2")
    shard = ShardManifest.read(make_shard("shard", base))
    adapter = AdapterManifest.read(written(tmp_path / "adapter", base))
    assert shard.signed.split(b"{")[0] == b"moesaic shard "
    assert adapter.signed.split(b"{")[0] == b"moesaic adapter "


def test_a_merged_adapter_is_undone_to_the_bytes_of_the_base(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base, adapter = make_base("v3", "float8_e4m3fn"), tmp_path / "adapter"
    keeping = Conditions(keep_undo=True)
    merged = merge_adapter(base, written(adapter, base), tmp_path / "merged", conditions=keeping)
    assert merged.digest != digest(base)
    assert undo_merge(tmp_path / "merged", tmp_path / "back") == digest(base)
    assert digest(tmp_path / "back", verify=True) == digest(base)
