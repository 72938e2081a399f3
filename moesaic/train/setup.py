"""From the settings of a run to what it starts with: tokenizer, model, state."""

from pathlib import Path

import torch

from moesaic.checkpoint.atomic import new_folder
from moesaic.config.model import ModelConfig
from moesaic.config.presets import PRESETS, find_model
from moesaic.config.train import Precision, TrainConfig
from moesaic.data.bpe import train_on_sources
from moesaic.data.loader import Loader
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.model.build import build_model, load_model
from moesaic.model.transformer import Transformer
from moesaic.train.optim import build_optimizer
from moesaic.train.state import TrainState
from moesaic.train.writers import check_installed


def base_folder(config: TrainConfig) -> Path | None:
    """The checkpoint a run goes on from; None for fresh weights."""
    if not isinstance(config.model, str) or config.model in PRESETS:
        return None
    return Path(config.model) if Path(config.model).is_dir() else None


def prepare_tokenizer(config: TrainConfig, home: Path) -> Tokenizer:
    """The tokenizer of a run, kept in ``home`` from its first start on.

    Raises:
        DataError: if it cannot be read or trained.
        ConfigError: if the model's vocabulary is smaller.
    """
    model = find_model(config.model)[1]
    if not home.exists():
        base = base_folder(config)
        if config.tokenizer is not None:
            tokenizer = Tokenizer.load(config.tokenizer)
        elif base is not None:
            tokenizer = Tokenizer.load(base)
        else:
            tokenizer = train_on_sources(config.data, model.vocab_size)
        with new_folder(home) as partial:
            tokenizer.save(partial)
    tokenizer = Tokenizer.load(home)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={model.vocab_size} is less than the {tokenizer.vocab_size} tokens "
            f"of {config.tokenizer or 'the tokenizer'}; raise it, or choose another tokenizer"
        )
    return tokenizer


def prepare_model(config: TrainConfig, tokenizer: Tokenizer) -> Transformer:
    """The model a run starts from, on its device. Fresh weights take the tokenizer's own tokens.

    Raises:
        ConfigError: if the device is missing or a row is longer than the model's context.
        CheckpointError: if the weights to start from cannot be read.
    """
    if config.esft is not None:
        raise ConfigError("esft trains a part of the model; run it with esft.recipe.train_slice")
    device = choose_device(config.device)
    dtype, compute = types_of(config.precision)
    base = base_folder(config)
    if base is not None:
        return load_model(base, dtype, device, compute_dtype=compute, recompute=config.recompute)
    shape = find_model(config.model)[1].changed(
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        quantization_config=None,
    )
    return build_model(
        shape, dtype, device, config.seed, compute_dtype=compute, recompute=config.recompute
    )


def types_of(precision: Precision) -> tuple[str, str | None]:
    """What weights are held in, and what activations are where that is another type."""
    held = "bfloat16" if precision == "bfloat16" else "float32"
    return held, "bfloat16" if precision == "mixed" else None


def prepare_state(config: TrainConfig, model: Transformer, tokenizer: Tokenizer) -> TrainState:
    """The state before the first step.

    Raises:
        ConfigError: if settings contradict the model.
        DataError: if the data cannot be read.
    """
    check_fits(config, model.config)
    generator = torch.Generator().manual_seed(config.seed)
    return TrainState(
        model=model,
        optimizer=build_optimizer(model, config.optimizer, generator),
        loader=Loader(config.data, tokenizer, config.batch.at_once),
        generator=generator,
    )


def check_fits(config: TrainConfig, model: ModelConfig) -> None:
    """Hold the settings of a run against its model and what is installed.

    Raises:
        ConfigError: if rows are longer than the context, the model has nothing to balance, or a
            package to log with is missing.
    """
    check_installed(config.logging)
    if config.data.seq_len > model.max_position_embeddings:
        raise ConfigError(
            f"data.seq_len={config.data.seq_len} is more than the model's "
            f"max_position_embeddings={model.max_position_embeddings}; lower data.seq_len"
        )
    config.balance.check(model)


def choose_device(asked: str) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but torch finds no GPU here; set device to 'cpu'")
    return asked
