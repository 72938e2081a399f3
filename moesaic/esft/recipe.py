"""One call from a checkpoint and data to a shard: score, select, park, train, write.

Everything lies in the run's folder, and the same call goes on with a run that was stopped.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from moesaic.checkpoint.atomic import new_file
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.header import parse_json
from moesaic.checkpoint.load import Reader
from moesaic.config.esft import EsftConfig
from moesaic.config.model import ModelConfig
from moesaic.config.packed import PackedGroups
from moesaic.config.settings import Settings
from moesaic.config.train import TrainConfig
from moesaic.data.loader import Loader
from moesaic.errors import CheckpointError, ConfigError
from moesaic.esft.adapter import write_adapter
from moesaic.esft.hold import hold_rest_
from moesaic.esft.manifest import Sign, Work
from moesaic.esft.measure import Choice, choose_experts
from moesaic.esft.park import load_frozen, load_slice
from moesaic.esft.select import Selection, check_choice, read_selection
from moesaic.esft.shard import ShardDtype, write_shard
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import torch_dtype
from moesaic.model.parked import check_parkable
from moesaic.model.residency import layers_with_experts
from moesaic.model.transformer import Transformer
from moesaic.planner.adapters import adapted_tensors
from moesaic.planner.inventory import tensors
from moesaic.train.folder import RunFolder
from moesaic.train.loop import TrainResult, never, train
from moesaic.train.progress import Display, Silent
from moesaic.train.setup import base_folder, check_fits, choose_device, prepare_tokenizer, types_of
from moesaic.units import count

SLICE, SHARD, ADAPTER = "slice.json", "shard", "adapter"
"""What the folder of a slice's run holds, besides what every run's and `Choice.save` do."""


class Slice(Settings):
    """What a run trains, decided before its first step."""

    base: str
    """Digest of the checkpoint."""
    selection: Selection
    """Its experts that are trained."""


@dataclass(slots=True)
class _Told:
    """Says how far scoring has come, at every tenth."""

    display: Display
    goal: int
    tenths: int = 0

    def __call__(self, tokens: int) -> None:
        if 10 * tokens // self.goal > self.tenths:
            self.tenths = 10 * tokens // self.goal
            self.display.say(f"scored {count(tokens)} of {count(self.goal)} tokens")


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What training a slice came to."""

    training: TrainResult
    selection: Selection
    shard: Path | None
    """The folder with what was trained, a shard or an adapter; None if the run was interrupted."""


def train_slice(
    config: TrainConfig, stop: Callable[[], bool] = never, display: Display | None = None
) -> SliceResult:
    """Train some experts of a checkpoint, or adapters for them, and write a shard or an adapter.

    Args:
        config: the run, with an ``esft`` table.
        stop: asked before every step; when true the run is saved and ends.
        display: shows progress; None shows nothing.

    Raises:
        ConfigError: if the settings contradict each other, the model, or the run in the folder.
        CheckpointError: if the base is damaged, or is not the one the run began with.
        DataError: if the data cannot be read.
        TrainingError: if another process trains there, or a value is not finite.
    """
    display = display or Silent()
    esft, folder, reader = _esft_of(config), RunFolder(Path(config.folder)), _base_of(config)
    folder.to_resume(config)  # refuses other settings before anything is scored
    _check_stored(esft, reader)
    _check(config, esft, reader.config)
    sign = _signer(esft)
    begun = _begun(folder, reader) or _begin(config, esft, folder, reader, display)
    model = _load(config, esft, begun.selection, reader)
    result = train(config, model, stop, display)
    if result.interrupted:
        return SliceResult(result, begun.selection, None)
    made = folder.path / (SHARD if esft.lora is None else ADAPTER)
    if not made.exists():
        work = _work(config, esft, begun, result)
        if esft.lora is not None:
            write_adapter(made, model, esft.lora, begun.selection, work, sign)
        else:
            stored = _shard_dtype(reader, begun.selection)
            write_shard(made, model, begun.selection, work, stored, sign)
    return SliceResult(result, begun.selection, made)


def _esft_of(config: TrainConfig) -> EsftConfig:
    if config.esft is None:
        raise ConfigError("esft is missing; add a table [esft] that says which experts to train")
    return config.esft


def _base_of(config: TrainConfig) -> Reader:
    base = base_folder(config)
    if base is None:
        raise ConfigError(
            "esft trains some experts of a checkpoint, but model is not the folder of one; set "
            "model to a folder, or remove esft to train fresh weights"
        )
    return Reader(base)


def _signer(esft: EsftConfig) -> Sign | None:
    """What signs the shard or the adapter; the key is read now, not when the training is over."""
    if esft.sign_with is None:
        return None
    from moesaic.esft.sign import read_private_key, sign

    return partial(sign, key=read_private_key(esft.sign_with))


def _check_stored(esft: EsftConfig, reader: Reader) -> None:
    """Refuse a base that could not take what is trained, before it is trained."""
    if esft.lora is None and isinstance(reader.config.quantization_config, PackedGroups):
        raise ConfigError(
            f"{reader.folder} is stored in integers, and experts trained from it could neither be "
            "merged nor served: their changes would be rounded away; take the checkpoint that it "
            "was quantised from, with esft.hold='int4' for as little memory"
        )


def _check(config: TrainConfig, esft: EsftConfig, model: ModelConfig) -> None:
    """Refuse what cannot be trained before experts are scored."""
    check_fits(config, model)
    check_choice(esft, model)
    if esft.park_embedding:
        check_parkable(model)
    if esft.lora is not None:
        every = tuple(range(model.experts))
        adapted_tensors(model, esft.lora, dict.fromkeys(layers_with_experts(model), every))
    if config.balance.bias_speed is not None:
        raise ConfigError(
            "balance.bias_speed would move the choice bias of routers that esft leaves as they "
            "are; remove one of them"
        )


def _load(
    config: TrainConfig, esft: EsftConfig, selection: Selection, reader: Reader
) -> Transformer:
    """What is trained, and what that needs to run."""
    dtype, compute = types_of(config.precision)
    held = selection if esft.lora is None else selection.at_rest()
    device = choose_device(config.device)
    model = load_slice(reader, held, dtype, device, compute, config.recompute, esft.hold)
    hold_rest_(model, esft.hold_linears, esft.park_embedding)
    if esft.lora is not None:
        adapted = adapted_tensors(model.config, esft.lora, selection.experts)
        make = fresh_factors(esft.lora.rank, torch.Generator().manual_seed(config.seed))
        adapt_(model, adapted, make, esft.lora.scale, torch_dtype(dtype))
    return model


def _begun(folder: RunFolder, reader: Reader) -> Slice | None:
    """What a run under way trains."""
    path = folder.path / SLICE
    if not (folder.record.exists() and path.exists()):
        return None
    found = Slice.parse(parse_json(path.read_bytes(), str(path)), str(path))
    if found.base != digest(reader.folder):
        raise CheckpointError(
            f"{reader.folder} is not the base that the run in {folder.path} began with, "
            f"{found.base[:12]}; put that one back to go on, or choose another folder for a new run"
        )
    return found


def _begin(
    config: TrainConfig, esft: EsftConfig, folder: RunFolder, reader: Reader, display: Display
) -> Slice:
    """Choose what a new run trains, and write it down."""
    if esft.selection is not None:
        selection = read_selection(esft.selection)
        _check_read(selection, esft)
    else:
        choice = _choose(config, esft, folder, reader, display)
        selection = choice.selection
        for line in choice.told():
            display.say(line)
    if esft.variant == "natural":
        selection = selection.natural(reader.config)
    begun = Slice(base=digest(reader.folder), selection=selection)
    folder.path.mkdir(parents=True, exist_ok=True)
    with new_file(folder.path / SLICE) as file:
        file.write(json.dumps(begun.model_dump(mode="json")).encode() + b"\n")
    return begun


def _check_read(selection: Selection, esft: EsftConfig) -> None:
    """Refuse a file that trains whole what adapters are to be trained beside."""
    for name in ("shared_experts", "modules", "non_expert_modules"):
        if esft.lora is not None and getattr(selection, name):
            raise ConfigError(
                f"{esft.selection}: {name} trains whole weights and lora only adapters; take it "
                "out of the file and name in lora.targets what has adapters, or remove lora"
            )


def _choose(
    config: TrainConfig, esft: EsftConfig, folder: RunFolder, reader: Reader, display: Display
) -> Choice:
    """Choose by the first documents that the run reads, each at most once."""
    tokenizer = prepare_tokenizer(config, folder.tokenizer)
    loader = Loader(config.data.changed(epochs=1), tokenizer, config.batch.at_once)
    dtype = "float32" if config.precision == "float32" else "bfloat16"
    model = load_frozen(reader, dtype, choose_device(config.device), esft.score_hold)
    choice = choose_experts(model, loader, esft, _Told(display, esft.score_tokens))
    choice.save(folder.path, esft.score)
    return choice


def _work(config: TrainConfig, esft: EsftConfig, begun: Slice, result: TrainResult) -> Work:
    return Work(
        base=begun.base,
        run=config.model_dump(mode="json"),
        variant=esft.variant,
        hold=esft.hold,
        hold_linears=esft.hold_linears,
        data=tuple(source.path for source in config.data.sources),
        fed=result.fed,
        tokens=result.tokens,
        steps=result.step,
    )


def _shard_dtype(reader: Reader, selection: Selection) -> ShardDtype:
    """What the base stores the trained tensors in; bfloat16 for FP8 blocks and for mixtures."""
    trained = (spec.name for spec in tensors(reader.config) if selection.trains(spec))
    stored = {reader.locate(name).dtype for name in trained}
    plain: dict[torch.dtype, ShardDtype] = {torch.float32: "float32", torch.float16: "float16"}
    return plain.get(stored.pop(), "bfloat16") if len(stored) == 1 else "bfloat16"
