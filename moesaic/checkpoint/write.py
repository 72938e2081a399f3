"""Write a checkpoint folder, its tensors in any form: streamed, and whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoint.atomic import check_space, new_folder, refuse_filled
from moesaic.checkpoint.digest import store_digest
from moesaic.checkpoint.files import LazyTensor, write_safetensors
from moesaic.checkpoint.folder import INDEX, SINGLE, files_beside
from moesaic.config.model import ModelConfig
from moesaic.config.published import published_config
from moesaic.errors import CheckpointError

FILE_BYTES = 5 * 10**9
"""Most bytes of tensors in one file."""
CARRIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "LICENSE-CODE",
    "LICENSE-MODEL",
    "NOTICE",
)
"""What a checkpoint takes over from its source, byte for byte. Not its card, which would claim what
is not so; see `moesaic.checkpoint.card`."""


class Finish(Protocol):
    """Adds what can only be written when the digest is known, before anyone sees the folder."""

    def __call__(self, folder: Path, *, digest: str) -> None:
        """To the checkpoint in a folder."""
        ...


def write_pending(
    folder: Path | str,
    config: ModelConfig,
    pending: Iterable[tuple[LazyTensor, ...]],
    dtype: str,
    source: Path | str | None = None,
    file_bytes: int = FILE_BYTES,
    finish: Finish | None = None,
) -> str:
    """Write a checkpoint whose tensors are in any form that the configuration tells.

    Args:
        folder: where; it must be empty or not exist.
        config: the model, with the form its weights are in.
        pending: what is stored for each tensor of the model, in one file.
        dtype: what the tensors that have no form of their own are in, as ``"bfloat16"``.
        source: the checkpoint whose tokenizer and generation settings are taken over.
        file_bytes: most bytes of tensors in one file; what belongs together has one in any case.
        finish: writes a card beside the tensors.

    Returns:
        The digest of the checkpoint.

    Raises:
        CheckpointError: if the disk is full; nothing is left under the folder's name then.
    """
    folder = Path(folder)
    if source is not None and not Path(source).is_dir():
        raise CheckpointError(f"source {source} is not a folder; give the folder of a checkpoint")
    groups = _split(pending, file_bytes)
    refuse_filled(folder)
    check_space(folder, sum(tensor.n_bytes for group in groups for tensor in group))
    with new_folder(folder) as partial:
        _write_json(partial / "config.json", published_config(config, dtype))
        _write_json(partial / "generation_config.json", _generation_config(config))
        if source is not None:
            for path in files_beside(Path(source), CARRIED_FILES):
                shutil.copyfile(path, partial / path.name)
        digests: dict[str, str] = {}
        for name, group in _named(groups):
            digests |= write_safetensors(partial / name, group, {"format": "pt"})
        if len(groups) > 1:
            _write_json(partial / INDEX, _index(groups))
        digest = store_digest(partial, digests)
        if finish is not None:
            finish(partial, digest=digest)
        return digest


def _split(groups: Iterable[tuple[LazyTensor, ...]], file_bytes: int) -> list[list[LazyTensor]]:
    """Tensors in files of bounded size, weights together with their scales."""
    files: list[list[LazyTensor]] = [[]]
    held = 0
    for group in groups:
        size = sum(tensor.n_bytes for tensor in group)
        if files[-1] and held + size > file_bytes:
            files.append([])
            held = 0
        files[-1].extend(group)
        held += size
    return files


def _named(files: list[list[LazyTensor]]) -> Iterator[tuple[str, list[LazyTensor]]]:
    """Files with the names they are published under."""
    for number, group in enumerate(files, start=1):
        many = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        yield (many if len(files) > 1 else SINGLE), group


def _index(files: list[list[LazyTensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.n_bytes for group in files for tensor in group)},
        "weight_map": {tensor.name: name for name, group in _named(files) for tensor in group},
    }


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    ids = config.model_dump(include={"bos_token_id", "eos_token_id", "pad_token_id"}, mode="json")
    return {name: value for name, value in ids.items() if value is not None}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
