"""From a configuration or a checkpoint folder to a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moesaic.checkpoint.load import Reader, load_into
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError, suggest
from moesaic.kernels.large_pages import in_large_pages
from moesaic.model.residency import Residency
from moesaic.model.transformer import Transformer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ConfigError: if it names none that a model can have.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(
            f"dtype={dtype!r} is not one of {', '.join(DTYPES)}{suggest(dtype, DTYPES)}"
        )
    return DTYPES[dtype]


def torch_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: if there is none here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"device={str(device)!r} is not here ({reason}); give cpu") from None


def empty_model(
    config: ModelConfig,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    residency: Residency | None = None,
    compute_dtype: str | torch.dtype | None = None,
    recompute: bool = False,
) -> Transformer:
    """A model whose weights have no values yet. See `Transformer` for the arguments.

    Raises:
        ConfigError: if there is no such device or dtype.
    """
    compute = None if compute_dtype is None else torch_dtype(compute_dtype)
    with torch_device(device), _default_dtype(torch_dtype(dtype)):
        return Transformer(config, residency, compute, recompute)


def build_model(
    config: ModelConfig,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    seed: int = 0,
    residency: Residency | None = None,
    compute_dtype: str | torch.dtype | None = None,
    recompute: bool = False,
) -> Transformer:
    """A model with fresh weights, the same for the same seed and device."""
    model = empty_model(config, dtype, device, residency, compute_dtype, recompute)
    model.init_weights_(torch.Generator(device).manual_seed(seed))
    return model


def load_model(
    folder: Path | str,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    residency: Residency | None = None,
    compute_dtype: str | torch.dtype | None = None,
    recompute: bool = False,
) -> Transformer:
    """The model in a checkpoint folder, ready for ``model(ids_BS)``.

    Tensors are read one at a time, straight to their place and dtype; those of parked experts are
    not read at all.

    Args:
        folder: config.json and safetensors files in the published layout.
        dtype: of the weights: float32, bfloat16, float16 or float64.
        device: where to.
        residency: which experts to hold and allow; None for all.
        compute_dtype: see `Transformer`.
        recompute: see `Transformer`.

    Raises:
        CheckpointError: if the folder is incomplete, damaged, or does not fit its config.json.
    """
    reader = Reader(folder)
    model = empty_model(reader.config, dtype, device, residency, compute_dtype, recompute)
    state = {name: in_large_pages(tensor) for name, tensor in model.state_dict().items()}
    load_into(reader, state, model.residency.stacks(model.config))
    return model


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give new parameters this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
