"""Nothing is trained from, or merged into, a checkpoint that is stored in integers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from slices import run_in

from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ConfigError
from moesaic.esft.recipe import train_slice
from moesaic.esft.rewrite import rewrite
from moesaic.kernels.groupwise import Bits, dequantise_groups, quantise_groups
from moesaic.model.build import build_model


def test_a_change_to_integers_is_refused(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig]
) -> None:
    config = tiny_config("v2", hidden_size=64, moe_intermediate_size=32)
    save(tmp_path / "base", config, build_model(config).state_dict(), "float32")
    quantise_folder(Reader(tmp_path / "base"), tmp_path / "packed", "4", 32, lambda spec: None)
    with pytest.raises(CheckpointError, match="take the checkpoint that it was quantised from"):
        rewrite(Reader(tmp_path / "packed"), tmp_path, read_tensor)


def test_experts_are_not_trained_from_integers(home: Path, tmp_path: Path) -> None:
    quantise_folder(Reader(home / "base"), tmp_path / "packed", "8", 8, lambda spec: None)
    run = run_in(home, tmp_path / "run", esft={"experts": 3}, model=str(tmp_path / "packed"))
    with pytest.raises(
        ConfigError,
        match=r"packed is stored in integers, .* quantised from, with esft\.hold='int4'",
    ):
        train_slice(run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bits", "change", "on_codes", "on_floats"),
    [(4, 0.01, 0.05, 0.95), (4, 0.05, 0.2, 0.95), (8, 0.001, 0.01, 0.95)],
)
def test_small_changes_of_what_codes_stand_for_are_rounded_away(
    bits: Bits, change: float, on_codes: float, on_floats: float, generator: torch.Generator
) -> None:
    """Why: the nearest codes of a weight that lies on codes and moved a little are the same ones.
    A weight that lies anywhere moves some codes, by as much on average."""
    weight = torch.randn(256, 512, generator=generator)
    moved = change * torch.randn(256, 512, generator=generator)

    def share_left(base: torch.Tensor) -> float:
        def stored(each: torch.Tensor) -> torch.Tensor:
            return dequantise_groups(quantise_groups(each, bits))

        found = stored(base + moved) - stored(base)
        return ((found * moved).sum() / moved.square().sum()).item()

    assert share_left(dequantise_groups(quantise_groups(weight, bits))) < on_codes
    assert share_left(weight) > on_floats
