"""From a checkpoint's tensors to `Rows`: as they are stored where that is how they are held."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.checkpoint.compressed import PACKED, SCALES
from moesaic.checkpoint.files import fill_, read_tensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import SCALE
from moesaic.checkpoint.quantised import plain
from moesaic.config.model import Fp8Blocks
from moesaic.config.packed import PackedGroups
from moesaic.errors import ConfigError
from moesaic.kernels.groupwise import GROUP
from moesaic.kernels.native.pack import BITS, FLOAT_KINDS, Form, Kind, Rows, row_bytes
from moesaic.kernels.quantise import BLOCK, FP8, Fp8Weight
from moesaic.planner.inventory import TensorSpec, tensors

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""Of an expert, in the order of the inventory."""


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint, and how its weights are held."""

    reader: Reader
    dtype: torch.dtype
    """Of weights that are no codes."""
    form: Form
    """What weights are made that are stored as floats."""
    keeps_codes: bool
    """Whether codes are held as they are stored; else as floats."""

    def __post_init__(self) -> None:
        quantised = self.reader.config.quantization_config
        if self.form == "lossless" and self.dtype != torch.bfloat16:
            raise ConfigError(
                f"form=lossless holds bfloat16 and no {self.dtype}; set dtype=bfloat16, or leave "
                "form out"
            )
        if self.form in BITS and isinstance(quantised, PackedGroups):
            raise ConfigError(
                f"form={self.form} would round once more what {self.reader.folder} stores as "
                "integers; leave form out, and these are used as they are"
            )

    def kind(self, spec: TensorSpec) -> Kind:
        """How a linear weight is held."""
        is_linear = spec.may_be_quantised
        is_code = is_linear and not spec.name.endswith(".kv_b_proj.weight")
        if (self.form == "int8" or self.form == "int4") and (is_code or spec.role == "head"):
            return self.form
        stored = FLOAT_KINDS[self.dtype]
        if is_code and self.keeps_codes:
            stored = self._stored_kind(spec.name)
        is_packed = self.form == "lossless" and (is_linear or spec.role == "head")
        return "lossless" if is_packed and stored == "bfloat16" else stored

    def kind_of_all(self, specs: Sequence[TensorSpec]) -> Kind:
        """How some weights are held, if it has to be the same for all."""
        kinds: set[Kind] = {self.kind(spec) for spec in specs}
        if len(kinds) == 1:
            return kinds.pop()
        return "lossless" if self.form == "lossless" else FLOAT_KINDS[self.dtype]

    def read_into_(self, rows: Rows, name: str) -> None:
        """Fill rows with a tensor.

        Raises:
            CheckpointError: if it cannot be read, or cannot be made what the rows are: see
                `Rows.put_`.
        """
        if rows.scales is None:
            self.reader.read_into_(rows.values, name)
        elif rows.kind == "float8":
            self._read_float8_(rows, name)
        elif rows.kind == self.form:
            rows.put_(self.reader.read(name), name)
        else:
            self._read_codes_(rows, name)

    def _stored_kind(self, name: str) -> Kind:
        stored, config = self.reader.locate(name), self.reader.config.quantization_config
        if isinstance(config, Fp8Blocks) and stored.dtype == FP8:
            return "float8" if config.weight_block_size == BLOCK else FLOAT_KINDS[self.dtype]
        if isinstance(config, PackedGroups) and stored.name == name + PACKED:
            group, scales = config.weights.group_size, self.reader.report.stored[name + SCALES]
            is_alike = scales.dtype == torch.bfloat16 and group % GROUP == 0
            if is_alike and self.reader.shape(name)[1] % group == 0:
                return "int4" if config.weights.num_bits == 4 else "int8"
        return FLOAT_KINDS[self.dtype]

    def _read_float8_(self, rows: Rows, name: str) -> None:
        stored = self.reader.report.stored
        fill_(rows.values.view(FP8), stored[name])
        _put_scales_(rows, read_tensor(stored[name + SCALE]))

    def _read_codes_(self, rows: Rows, name: str) -> None:
        """Words are the bytes of the codes, one after the other."""
        stored, config = self.reader.report.stored, self.reader.config.quantization_config
        assert isinstance(config, PackedGroups)
        assert rows.scales is not None
        fill_(rows.values.view(torch.int32), stored[name + PACKED])
        scales = read_tensor(stored[name + SCALES])
        rows.scales.copy_(scales.repeat_interleave(config.weights.group_size // GROUP, dim=-1))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's weights as a source holds them."""

    resident: int
    """What every token needs."""
    expert: int
    """One routed expert; 0 where there are none."""
    n_experts: int
    """Of all layers."""

    @classmethod
    def of(cls, source: Source) -> "Sizes":
        """From headers alone."""
        resident, routed = 0, []
        config = source.reader.config
        if config.tie_word_embeddings and source.form != "weights":
            resident = config.vocab_size * row_bytes(config.hidden_size, source.form)  # as the head
        for spec in tensors(config):
            if spec.role == "routed":
                routed.append(spec)
            elif spec.copy_of is None:
                resident += _bytes(spec, source.kind(spec))
        kinds, parts = expert_kinds(source, routed), len(_PROJECTIONS)
        expert = sum(_bytes(spec, kinds[_is_down(spec)]) for spec in routed[:parts])
        return cls(resident, expert, len(routed) // parts)


def expert_kinds(source: Source, routed: Sequence[TensorSpec]) -> tuple[Kind, Kind]:
    """How gate and up, and how down of all routed experts are held."""
    down = [spec for spec in routed if _is_down(spec)]
    others = [spec for spec in routed if not _is_down(spec)]
    return source.kind_of_all(others), source.kind_of_all(down)


def read_expert_(source: Source, layer: int, expert: int, rows_in: Rows, rows_out: Rows) -> None:
    """Fill the rows of gate and up, and those of down, with one expert.

    Raises:
        CheckpointError: see `Source.read_into_`.
    """
    inner = rows_out.width
    parts = rows_in.part(0, inner), rows_in.part(inner, 2 * inner), rows_out
    for name, rows in zip(_PROJECTIONS, parts, strict=True):
        source.read_into_(rows, f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight")


def put_(rows: Rows, weight: Tensor | Fp8Weight, name: str) -> None:
    """Fill rows with a tensor as a checkpoint would store it, like `Source.read_into_`.

    Raises:
        CheckpointError: if it cannot be made what the rows are: see `Rows.put_`.
    """
    if rows.kind == "float8":
        assert isinstance(weight, Fp8Weight)
        rows.values.view(FP8).copy_(weight.weight)
        _put_scales_(rows, weight.weight_scale_inv)
    else:
        rows.put_(plain(weight), name)


def _put_scales_(rows: Rows, scales: Tensor) -> None:
    """One of a block becomes one of each of its rows."""
    assert rows.scales is not None
    rows.scales.copy_(scales.repeat_interleave(BLOCK[0], dim=0)[: len(rows.values)])


def _is_down(spec: TensorSpec) -> bool:
    return spec.name.endswith(".down_proj.weight")


def _bytes(spec: TensorSpec, kind: Kind) -> int:
    if len(spec.shape) == 1:
        return 4 * spec.size  # norms and choice biases, also held in float32
    n_bytes = spec.shape[0] * row_bytes(spec.shape[1], kind)
    return n_bytes + (4 * spec.size if spec.role == "router" else 0)  # likewise
