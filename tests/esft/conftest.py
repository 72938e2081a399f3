"""Batches of random tokens, checkpoints of a few thousand parameters, and shards of them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from slices import write_home
from torch import Tensor

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.names import place
from moesaic.checkpoint.save import write
from moesaic.config.model import ModelConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.esft import hold
from moesaic.esft.manifest import Work
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import write_shard
from moesaic.model.build import build_model
from moesaic.planner.inventory import TensorSpec


@pytest.fixture(autouse=True)
def brought_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hold="cpu"`` brings experts layer by layer here too, as it does for a GPU."""
    monkeypatch.setattr(hold, "is_at_hand", lambda form, device: False)


def _batch(rows: int, positions: int, generator: torch.Generator) -> Batch:
    ids_BS = torch.randint(2, 64, (rows, positions), generator=generator)
    labels_BS = ids_BS.roll(-1, dims=1)
    documents_BS = torch.zeros_like(ids_BS)
    documents_BS[:, positions // 2 :] = 1
    documents_BS[:, positions - 2 :] = 2  # padding
    labels_BS[:, positions - 2 :] = IGNORED
    labels_BS[:, :2] = IGNORED  # a prompt
    positions_BS = torch.arange(positions).repeat(rows, 1)
    positions_BS[:, positions // 2 :] -= positions // 2
    return Batch(ids_BS, labels_BS, positions_BS, documents_BS)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``make_batch(rows, positions, generator)``: documents, padding, tokens not learned."""
    return _batch


def _write_base(folder: Path, config: ModelConfig, dtype: str) -> None:
    """A checkpoint in several files, with its digest and a tokenizer."""
    state = build_model(config, seed=3).state_dict()

    def make(spec: TensorSpec) -> Tensor:
        found = place(spec)
        assert found is not None
        return found.of(state[found.name])

    write(folder, config, make, dtype, file_bytes=20_000)
    (folder / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="session")
def built_base(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Callable[..., Path]:
    """``built_base(family, dtype, **changes)``: a checkpoint to copy, written once."""
    home = tmp_path_factory.mktemp("bases")

    def build(family: str, dtype: str, **changes: Any) -> Path:
        folder = home / "-".join([family, dtype, *map(str, changes.items())])
        if not folder.exists():
            _write_base(folder, tiny_config(family, **changes), dtype)
        return folder

    return build


@pytest.fixture
def make_base(tmp_path: Path, built_base: Callable[..., Path]) -> Callable[..., Path]:
    """``make_base(family, dtype, **changes)``: a checkpoint in several files, with its digest."""

    def copy(family: str, dtype: str = "bfloat16", **changes: Any) -> Path:
        return shutil.copytree(built_base(family, dtype, **changes), tmp_path / "base")

    return copy


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A text, and a checkpoint with a tokenizer for it; not to be changed."""
    config = tiny_config("v3", vocab_size=300)
    return write_home(tmp_path_factory.mktemp("home"), config, "bfloat16")


EXPERTS = {1: (1, 2, 5), 2: (0, 3, 7)}


def _write_shard(
    folder: Path,
    base: Path,
    experts: Mapping[int, tuple[int, ...]] = EXPERTS,
    tokens: int = 100,
    step: float = 0.5,
    dtype: Any = "bfloat16",
    sign: Any = None,
) -> Path:
    """A shard whose weights are the base's and a step."""
    selection = Selection(experts=dict(experts))
    model = load_slice(base, selection)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += step
    run = {"steps": 2, "schedule": {"learning_rate": 1e-5}}
    work = Work(base=digest(base), run=run, data=("math",), tokens=tokens, steps=2)
    write_shard(folder, model, selection, work, dtype, sign)
    return folder


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Path]:
    """``make_shard(name, base, experts, tokens, step)``: trained weights are the base's + step."""
    return lambda name, base, **changes: _write_shard(tmp_path / name, base, **changes)


@pytest.fixture(scope="session")
def built_shard(tmp_path_factory: pytest.TempPathFactory, built_base: Callable[..., Path]) -> Path:
    """A shard of ``built_base("v2", "bfloat16")``, to copy."""
    return _write_shard(tmp_path_factory.mktemp("shards") / "v2", built_base("v2", "bfloat16"))


def _write_key(folder: Path, name: str, key: Any, password: bytes | None = None) -> None:
    """``<name>.pem`` and ``<name>.pub``."""
    encryption = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture
def write_key() -> Callable[..., None]:
    """``write_key(folder, name, key, password)``: both halves, as OpenSSL writes them."""
    return _write_key


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the keys of Alice and of Bob."""
    for name, byte in (("alice", b"a"), ("bob", b"b")):
        _write_key(tmp_path, name, Ed25519PrivateKey.from_private_bytes(byte * 32))
    return tmp_path
