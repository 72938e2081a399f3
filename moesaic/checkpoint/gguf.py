"""Write a checkpoint as one GGUF file, which llama.cpp runs: streamed, and whole or not at all."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import torch
from torch import Tensor

from moesaic.checkpoint.atomic import check_space, new_file
from moesaic.checkpoint.gguf_shape import add_shape, architecture, check_shape, differences
from moesaic.checkpoint.gguf_tensors import Entry, entries
from moesaic.checkpoint.gguf_tokens import SavedTokenizer, add_tokenizer, read_vocabulary
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError

Form = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
Kind = gguf.GGMLQuantizationType

_KINDS: dict[Form, Kind] = {
    "f32": Kind.F32,
    "f16": Kind.F16,
    "bf16": Kind.BF16,
    "q8_0": Kind.Q8_0,
    "q4_0": Kind.Q4_0,
}
_FILE_TYPES: dict[Form, gguf.LlamaFileType] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
FORMS: dict[str, Form] = {form: form for form in _KINDS}
"""What weights can be stored in: the last two as integers with a scale for every 32 of a row."""
_PLAIN = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Written:
    """What came to be."""

    path: Path
    architecture: str
    """What llama.cpp calls the kind of model."""
    pre_tokenizer: str | None
    """What llama.cpp calls the rules that cut text; None for a file without a tokenizer."""
    tensors: int
    n_bytes: int
    """Size of the file."""
    notes: tuple[str, ...]
    """What llama.cpp does otherwise, and what could not be stored as asked."""


def write_gguf(
    source: Reader,
    out: Path,
    form: Form,
    tokenizer: SavedTokenizer | None,
    pre_tokenizer: str | None,
    on_weights: Callable[[int], None],
) -> Written:
    """Write a checkpoint as a GGUF file.

    Norms and routers are in float32, whatever the form. Rows that are not whole blocks of 32 stay
    in bfloat16 where integers are asked for. With ``q4_0``, embedding, head and ``kv_b_proj`` have
    8 bits. The weights of the experts of one layer are in memory at a time, one projection of them.

    Args:
        source: the checkpoint, in any stored form.
        out: the file; it must not exist.
        form: what weights are stored in.
        tokenizer: the checkpoint's; None leaves it out, and llama.cpp then takes only token ids.
        pre_tokenizer: what llama.cpp calls the rules by which the tokenizer cuts text; None finds
            out.
        on_weights: told how many weights have been written, after each part.

    Raises:
        ConfigError: if llama.cpp does not compute such a model.
        CheckpointError: if ``out`` exists, the tokenizer has no form there, the disk is full, or a
            weight has no form in ``form``; nothing is left under the name then.
    """
    config = source.config
    check_shape(config)
    vocabulary = None
    if tokenizer is not None:
        vocabulary = read_vocabulary(tokenizer.source, config.vocab_size, pre_tokenizer)
    if out.exists():
        raise CheckpointError(f"{out} exists already; give another name, or remove it first")
    planned = [(entry, _kind(entry, form)) for entry in entries(source)]
    check_space(out, sum(_n_bytes(entry.shape, kind) for entry, kind in planned))
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as file:
        writer = gguf.GGUFWriter(file.name, gguf.MODEL_ARCH_NAMES[architecture(config)])
        try:
            writer.add_type("model")
            writer.add_name(source.folder.resolve().name)
            writer.add_file_type(_FILE_TYPES[form])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            add_shape(writer, config)
            add_tokenizer(writer, tokenizer, vocabulary)
            _write(writer, planned, on_weights)
        finally:
            writer.close()
    coarse = sum(kind == Kind.BF16 for _, kind in planned) if form in ("q8_0", "q4_0") else 0
    spared = (f"{coarse} tensors with rows that are not whole blocks of 32 stay in bfloat16",)
    return Written(
        out,
        writer.arch,
        vocabulary.pre_tokenizer if vocabulary else None,
        len(planned),
        out.stat().st_size,
        (*differences(config), *(spared if coarse else ())),
    )


def _write(
    writer: gguf.GGUFWriter, planned: list[tuple[Entry, Kind]], on_weights: Callable[[int], None]
) -> None:
    """The header with all names, then tensor by tensor."""
    for entry, kind in planned:
        n_bytes = _n_bytes(entry.shape, kind)
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, kind in planned:
        stored = np.empty(_n_bytes(entry.shape, kind), np.uint8)
        part_bytes = len(stored) // len(entry.parts)
        for first, make in zip(range(0, len(stored), part_bytes), entry.parts, strict=True):
            part = make()
            stored[first : first + part_bytes] = _encoded(part, kind, entry.name)
            on_weights(part.numel())
        writer.write_tensor_data(stored)


def _kind(entry: Entry, form: Form) -> Kind:
    """What a tensor is stored as."""
    if entry.is_exact:
        return Kind.F32
    kind = Kind.Q8_0 if form == "q4_0" and entry.is_delicate else _KINDS[form]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if entry.shape[-1] % block == 0 else Kind.BF16


def _n_bytes(shape: tuple[int, ...], kind: Kind) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return prod(shape) // block * block_bytes


def _encoded(weight: Tensor, kind: Kind, name: str) -> np.ndarray:
    """The bytes of a weight."""
    plain = _PLAIN.get(kind)
    if kind != Kind.BF16 and not weight.to(plain or torch.float32).isfinite().all():
        raise CheckpointError(
            f"{name} holds values that {kind.name.lower()} cannot; find out where they come from, "
            "or export in bf16"
        )
    if plain is None:
        return gguf.quantize(weight.float().numpy(), kind).reshape(-1)
    return weight.to(plain).contiguous().view(-1).view(torch.uint8).numpy()
