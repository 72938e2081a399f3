"""Checkpoints with a tokenizer, and two kinds of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import random_model

from moesaic.checkpoint.save import save
from moesaic.config.data import DataConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_on_sources


@pytest.fixture(scope="session")
def write_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Callable[..., Path]:
    """``write_checkpoint(family, seed, **changes)``: written once, beside letters.txt and
    digits.txt."""
    home = tmp_path_factory.mktemp("analyse")
    (home / "letters.txt").write_text(
        "".join(f"word {chr(97 + n % 23)} says so\n" * 3 for n in range(80))
    )
    (home / "digits.txt").write_text("".join(f"{n} + {n} = {2 * n}\n" for n in range(250)))
    sources = [{"path": str(home / "*.txt"), "split": "all"}]
    tokenizer = train_on_sources(DataConfig.parse({"sources": sources, "seq_len": 32}), 300)

    def write(family: str, seed: int = 0, **changes: Any) -> Path:
        folder = home / "-".join([family, str(seed), *(f"{k}={v}" for k, v in changes.items())])
        if not folder.exists():
            config = tiny_config(family, vocab_size=300, max_position_embeddings=64, **changes)
            save(folder, config, random_model(config, seed).state_dict(), "float32")
            tokenizer.save(folder)
        return folder

    return write
