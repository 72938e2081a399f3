"""Write a checkpoint again with its linear layers in fewer bits, one tensor in memory at a time."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from moesaic.checkpoint.card import Made, write_card
from moesaic.checkpoint.compressed import packed_parts
from moesaic.checkpoint.digest import digest as digest_of
from moesaic.checkpoint.files import LazyTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantised import StoredWeight, plain
from moesaic.checkpoint.save import write
from moesaic.checkpoint.write import write_pending
from moesaic.config.card import CardConfig
from moesaic.config.packed import PackedGroups, PackedIntegers, packed_groups
from moesaic.errors import CheckpointError
from moesaic.planner.inventory import TensorSpec, tensors

Form = Literal["4", "8", "fp8"]
FORMS: dict[str, Form] = {"8": "8", "4": "4", "fp8": "fp8"}
_TOLD: dict[Form, str] = {
    "8": "in integers of 8 bits",
    "4": "in integers of 4 bits",
    "fp8": "in blocks of FP8",
}
OnTensor = Callable[[TensorSpec], None]


def quantise_folder(
    source: Reader, folder: Path | str, form: Form, group: int, on_tensor: OnTensor
) -> str:
    """Write a checkpoint with its linear layers quantised, and the rest in bfloat16.

    Args:
        source: the checkpoint, in plain weights or FP8 blocks.
        folder: where to; it must be empty or not exist.
        form: integers of 4 or 8 bits in the layout of compressed-tensors, or ``fp8`` for the
            blocks that DeepSeek publishes.
        group: neighbours of a row that share a scale, for integers.
        on_tensor: told of every tensor when it has been made.

    Returns:
        The digest of the new checkpoint.

    Raises:
        CheckpointError: if the source is in integers already, no layer can be quantised or experts
            only in part, a weight is not finite, or the disk is full; nothing is left under the
            folder's name then.
    """
    if isinstance(source.config.quantization_config, PackedGroups):
        raise CheckpointError(
            f"{source.folder} is in integers already, and would lose twice; give the checkpoint "
            "that it was quantised from"
        )

    def make(spec: TensorSpec) -> StoredWeight:
        stored = source.stored(spec.name)
        on_tensor(spec)
        return stored

    finish = partial(_write_card, source=source, form=form, name=Path(folder).resolve().name)
    if form == "fp8":
        return write(folder, source.config, make, "float8_e4m3fn", source.folder, finish=finish)
    groups = packed_groups(4 if form == "4" else 8, group, ignored(source, group))
    config = source.config.model_copy(update={"quantization_config": groups})
    pending = _pending(source, make, groups.weights)
    return write_pending(folder, config, pending, "bfloat16", source.folder, finish=finish)


def _write_card(folder: Path, source: Reader, form: Form, name: str, digest: str) -> None:
    made = Made(
        how=f"the base’s with its linear layers {_TOLD[form]}, not trained further",
        model=source.config,
        base=source.folder,
        base_digest=digest_of(source.folder),
    )
    write_card(folder, made, CardConfig(), name, digest)


def may_be_packed(spec: TensorSpec, group: int) -> bool:
    """Whether a tensor is stored as integers: the linear layers of a block whose rows are whole
    groups, without ``kv_b_proj``.

    Routers, norms and the embedding are small or looked up, and a wrong choice of experts costs
    more than a rounded product. The head turns every error into logits. Absorbed attention
    multiplies by ``kv_b_proj`` from both sides, so that groups along its rows would help only one
    of them, and it is less than a hundredth of a model.
    """
    is_linear = spec.may_be_quantised and not spec.name.endswith(".kv_b_proj.weight")
    return is_linear and spec.shape[1] % group == 0


def ignored(source: Reader, group: int) -> tuple[str, ...]:
    """Linear modules that stay as they are, by pattern, and by name where only their width keeps
    them out.

    Raises:
        CheckpointError: if that would be all of them, or some projections of experts only.
    """
    linear = [spec for spec in tensors(source.config) if spec.may_be_quantised]
    if not any(may_be_packed(spec, group) for spec in linear):
        widths = sorted({spec.shape[1] for spec in linear})
        raise CheckpointError(
            f"no layer of {source.folder} has rows of whole groups of {group}: they have "
            f"{', '.join(map(str, widths))} weights; give {_other_forms(widths)}"
        )
    _check_experts(source, group)
    by_width = (spec for spec in linear if spec.shape[1] % group)
    patterns = ("lm_head", r"re:.*\.mlp\.gate$", r"re:.*\.kv_b_proj$")
    heads = (r"re:.*\.eh_proj$", r"re:.*\.shared_head\.head$")
    further = heads if source.config.num_nextn_predict_layers else ()
    return (*patterns, *further, *(spec.name.removesuffix(".weight") for spec in by_width))


def _check_experts(source: Reader, group: int) -> None:
    """See that all projections of an expert are packed, or none: others read them in one form."""
    routed = (spec for spec in tensors(source.config) if spec.role == "routed")
    widths = sorted({spec.shape[1] for spec in routed})
    if len({width % group == 0 for width in widths}) > 1:
        raise CheckpointError(
            f"experts of {source.folder} have rows of {' and '.join(map(str, widths))} weights, "
            f"not all of whole groups of {group}, and vLLM and transformers read the projections "
            f"of an expert in one form only; give {_other_forms(widths)}"
        )


def _other_forms(widths: Iterable[int]) -> str:
    """Options for rows of these widths."""
    fitting = (group for group in (64, 32) if all(width % group == 0 for width in widths))
    return " or ".join([*(f"--set group={group}" for group in fitting), "--bits fp8"])


def _pending(
    source: Reader, make: Callable[[TensorSpec], StoredWeight], form: PackedIntegers
) -> Iterator[tuple[LazyTensor, ...]]:
    """What is stored for each tensor of the model."""
    for spec in tensors(source.config):
        if may_be_packed(spec, form.group_size):
            yield packed_parts(spec.name, spec.shape, lambda spec=spec: make(spec), form)
        else:
            dtype = torch.float32 if spec.is_router_bias else torch.bfloat16
            yield (
                LazyTensor(
                    spec.name,
                    dtype,
                    spec.shape,
                    lambda spec=spec, dtype=dtype: plain(make(spec)).to(dtype),
                ),
            )
