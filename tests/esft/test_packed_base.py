"""Nothing is merged into a checkpoint that is stored in integers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError
from moesaic.esft.rewrite import rewrite
from moesaic.model.build import build_model


def test_a_change_to_integers_is_refused(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig]
) -> None:
    config = tiny_config("v2", hidden_size=64, moe_intermediate_size=32)
    save(tmp_path / "base", config, build_model(config).state_dict(), "float32")
    quantise_folder(Reader(tmp_path / "base"), tmp_path / "packed", "4", 32, lambda spec: None)
    with pytest.raises(CheckpointError, match="take the checkpoint that it was quantised from"):
        rewrite(Reader(tmp_path / "packed"), tmp_path, read_tensor)
