"""Compare a checkpoint folder with the inventory of its model.

Everything is judged from headers, but that tensors which repeat another do so: some of their rows
are read.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.compressed import PACKED, compare_packed, weight_of_part
from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.folder import Contents, Kind, Problem, inside, read_contents
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor
from moesaic.checkpoint.names import SCALE
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.config.published import read_config
from moesaic.errors import CheckpointError, suggest
from moesaic.kernels.quantise import FP8, block_grid
from moesaic.planner.inventory import TensorSpec, tensors
from moesaic.units import count, gb

_WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_SHOWN = 8
_ROWS_COMPARED = 16


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a checkpoint folder, and whether it is sound."""

    folder: Path
    config: ModelConfig
    """As in config.json, but without prediction modules that are not stored."""
    files: tuple[Path, ...]
    stored: Mapping[str, StoredTensor]
    """Every tensor in the files, scales and ignored ones included."""
    problems: tuple[Problem, ...]
    """Reasons not to load it."""
    warnings: tuple[str, ...]
    """Oddities that change nothing."""
    ignored: tuple[str, ...]
    """Tensors that old tools stored and that are computed now."""

    @property
    def is_sound(self) -> bool:
        """Whether it can be loaded."""
        return not self.problems

    @property
    def parameters(self) -> int:
        """Parameters of the model, tensors that repeat another not counted."""
        return sum(spec.size for spec in tensors(self.config) if spec.copy_of is None)

    @property
    def n_bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.n_bytes for tensor in self.stored.values())

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The tensors, or files, that have this kind of problem."""
        return tuple(problem.name for problem in self.problems if problem.kind == kind)

    def dtypes(self) -> dict[str, int]:
        """How many tensors are stored in each type, most frequent first."""
        found = Counter(DTYPE_NAMES[tensor.dtype] for tensor in self.stored.values())
        return dict(found.most_common())

    def with_damage(self, name: str, text: str) -> "Report":
        """The same with one more problem."""
        return replace(self, problems=(*self.problems, Problem("damaged", name, text)))

    def error(self) -> CheckpointError:
        """The problems as an error."""
        return CheckpointError(
            f"{self.folder} cannot be read:\n  " + "\n  ".join(self._told_problems())
        )

    def text(self) -> str:
        """The report for a terminal."""
        dtypes = ", ".join(f"{n} {name}" for name, n in self.dtypes().items())
        lines = [
            f"{self.folder}: {self.config.model_type}, {self.config.num_hidden_layers} layers, "
            f"{self.config.experts} experts",
            f"{count(self.parameters)} parameters | {len(self.stored)} tensors ({dtypes}) | "
            f"files: {len(self.files)} | {gb(self.n_bytes)}",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        if self.ignored:
            lines.append(f"ignored: {count(len(self.ignored))} tensors such as {self.ignored[0]}")
        lines += [f"problem: {text}" for text in self._told_problems()]
        return "\n".join([*lines, "sound" if self.is_sound else "not sound"])

    def _told_problems(self) -> Iterator[str]:
        """The first problems of each kind, and how many more there are."""
        kinds = Counter(problem.kind for problem in self.problems)
        for kind, total in kinds.items():
            these = [problem.text for problem in self.problems if problem.kind == kind]
            yield from these[:_SHOWN]
            if total > _SHOWN:
                yield f"and {total - _SHOWN} more tensors {kind}"


def check(folder: Path | str) -> Report:
    """What is in a checkpoint folder, and every reason not to load it.

    Raises:
        CheckpointError: if there is no readable config.json, or no weights at all.
        ConfigError: if config.json describes no model of this family.
    """
    folder = Path(folder)
    contents = read_contents(folder)
    config = _stored_config(read_config(inside(folder, "config.json")), contents)
    specs = {spec.name: spec for spec in tensors(config)}
    problems = [*contents.problems]
    for spec in specs.values():
        stored = contents.tensors.get(spec.name)
        if stored is not None:
            problems += _compare(spec, stored, contents, config)
        elif spec.name + PACKED in contents.tensors.keys() | contents.excused:
            problems += compare_packed(spec, contents, config)
        elif spec.copy_of is None and spec.name not in contents.excused:
            problems.append(Problem("missing", spec.name, _missing(spec, config)))
    ignored: list[str] = []
    for name, stored in contents.tensors.items():
        if _IGNORED.fullmatch(name):
            ignored.append(name)
        elif name not in specs:
            problems += _judge_extra(stored, specs, contents, config)
    if not problems:
        problems += _compare_repeats(specs, contents, config)
    return Report(
        folder,
        config,
        tuple(contents.files),
        contents.tensors,
        tuple(problems),
        tuple(contents.warnings),
        tuple(ignored),
    )


def _stored_config(config: ModelConfig, contents: Contents) -> ModelConfig:
    """The configuration without the prediction modules, if the folder stores nothing of them.

    transformers keeps the number of modules in config.json and writes none of their weights.
    """
    depth, first = config.num_nextn_predict_layers, config.num_hidden_layers
    prefixes = tuple(f"model.layers.{layer}." for layer in range(first, first + depth))
    if not depth or any(n.startswith(prefixes) for n in {*contents.tensors, *contents.excused}):
        return config
    contents.warnings.append(
        f"config.json says num_nextn_predict_layers={depth}, the weights of the multi-token "
        "prediction modules are not here; the model is read without them"
    )
    return config.model_copy(update={"num_nextn_predict_layers": 0})


def _tied_head(config: ModelConfig) -> TensorSpec | None:
    """The head that some tools store although it is the embedding."""
    if not config.tie_word_embeddings:
        return None
    shape = (config.vocab_size, config.hidden_size)
    return TensorSpec("lm_head.weight", shape, "head", copy_of="model.embed_tokens.weight")


def _compare(
    spec: TensorSpec, stored: StoredTensor, contents: Contents, config: ModelConfig
) -> Iterator[Problem]:
    """What is wrong with a tensor that the model has."""
    if stored.shape != spec.shape:
        text = (
            f"{spec.name} has shape {list(stored.shape)}, config.json makes it {list(spec.shape)}; "
            "fetch the config.json that belongs to these weights"
        )
        yield Problem("wrong shape", spec.name, text)
    elif stored.dtype == FP8:
        yield from _compare_fp8(spec, contents, config)
    elif stored.dtype not in _WEIGHT_DTYPES:
        text = (
            f"{spec.name} is stored as {DTYPE_NAMES[stored.dtype]}, weights are BF16, F16, F32 or "
            "F8_E4M3 with scales; convert it to one of them"
        )
        yield Problem("wrong type", spec.name, text)


def _compare_fp8(spec: TensorSpec, contents: Contents, config: ModelConfig) -> Iterator[Problem]:
    """What is wrong with the scales of a weight in FP8 blocks."""
    name, blocks = spec.name + SCALE, config.quantization_config
    stored = contents.tensors.get(name)
    if not isinstance(blocks, Fp8Blocks) or len(spec.shape) != 2:
        text = (
            f"{spec.name} is stored as F8_E4M3, config.json has no quantization_config that tells "
            "its blocks; fetch the config.json that belongs to these weights"
        )
        yield Problem("wrong type", spec.name, text)
    elif stored is None:
        if name not in contents.excused:
            text = f"{name} is missing, the scales of the FP8 blocks of {spec.name}; fetch it"
            yield Problem("missing", name, text)
    else:
        grid = block_grid(spec.shape, blocks.weight_block_size)
        if stored.shape != grid:
            text = (
                f"{name} has shape {list(stored.shape)}, {list(spec.shape)} in blocks of "
                f"{list(blocks.weight_block_size)} needs {list(grid)}; "
                "fetch it again, or correct weight_block_size in config.json"
            )
            yield Problem("wrong shape", name, text)
        elif stored.dtype != torch.float32:
            text = f"{name} is stored as {DTYPE_NAMES[stored.dtype]}, scales are F32; convert it"
            yield Problem("wrong type", name, text)


def _judge_extra(
    stored: StoredTensor, specs: Mapping[str, TensorSpec], contents: Contents, config: ModelConfig
) -> Iterator[Problem]:
    """What is wrong with a tensor that the inventory does not list."""
    head = _tied_head(config)
    if head is not None and stored.name == head.name:
        yield from _compare(head, stored, contents, config)
        return
    packed = weight_of_part(stored.name)
    if packed in specs:
        if packed in contents.tensors:
            text = (
                f"{stored.name} holds {packed}, which is stored as "
                f"{DTYPE_NAMES[contents.tensors[packed].dtype]} too; remove one of them"
            )
            yield Problem("unexpected", stored.name, text)
        return  # checked with its weight
    weight = stored.name.removesuffix(SCALE)
    if weight != stored.name and weight in specs:
        of = contents.tensors.get(weight)
        if weight in contents.excused or (of is not None and of.dtype == FP8):
            return  # checked with its weight
        text = f"{stored.name} scales {weight}, which is not stored as F8_E4M3; remove it"
    elif stored.name.startswith(f"model.layers.{config.num_hidden_layers}."):
        text = (
            f"{stored.name} belongs to a layer after the last; if it is a multi-token prediction "
            "module, set num_nextn_predict_layers in config.json"
        )
    else:
        text = (
            f"{stored.name} is no tensor of this model{suggest(stored.name, specs)}; remove it, or "
            "fetch the config.json that belongs to these weights"
        )
    yield Problem("unexpected", stored.name, text)


def _compare_repeats(
    specs: Mapping[str, TensorSpec], contents: Contents, config: ModelConfig
) -> Iterator[Problem]:
    """Which tensors should repeat another and have other rows."""
    head = _tied_head(config)
    for spec in (*specs.values(), *([head] if head else [])):
        if spec.copy_of is None or spec.name not in contents.tensors:
            continue
        repeated, original = contents.tensors[spec.name], contents.tensors[spec.copy_of]
        if not torch.equal(_sample(repeated), _sample(original)):
            fix = (
                "fetch both again, or set tie_word_embeddings to false if the head is its own"
                if spec.role == "head"
                else "prediction modules share embedding and head with the model: fetch both again"
            )
            text = f"{spec.name} differs from {spec.copy_of}, which it must repeat; {fix}"
            yield Problem("damaged", spec.name, text)


def _sample(stored: StoredTensor) -> Tensor:
    """Some rows from all over a matrix."""
    rows = stored.shape[0]
    width = stored.n_bytes // rows
    found = [
        replace(stored, shape=stored.shape[1:], start=stored.start + row * width, n_bytes=width)
        for row in range(0, rows, max(1, rows // _ROWS_COMPARED))
    ]
    return torch.stack([read_tensor(row).float() for row in found])


def _missing(spec: TensorSpec, config: ModelConfig) -> str:
    if spec.layer is not None and spec.layer >= config.num_hidden_layers:
        return (
            f"{spec.name} of a multi-token prediction module is missing; fetch it, or set "
            "num_nextn_predict_layers to 0 in config.json to go without the module"
        )
    return f"{spec.name} is missing; fetch the file that holds it"
