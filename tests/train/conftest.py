from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic.config.model import ModelConfig
from moesaic.config.train import TrainConfig

_TEXT = (
    "The router sends each token to a few experts. A shared expert sees them all.\n"
    "When one expert is too busy its bias falls, and the next tokens go elsewhere.\n"
    "Number {n} of these lines differs from number {m} by its numbers alone.\n"
)


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Callable[..., TrainConfig]:
    """``run(folder, **changes)``: eight steps on short texts, with everything switched on."""
    text = "\n\n".join(_TEXT.format(n=n, m=7 * n % 89) for n in range(120))
    (tmp_path / "lines.txt").write_text(text)
    source = {"path": str(tmp_path / "lines.txt"), "separator": "\n\n"}
    model = tiny_config("v3", vocab_size=300, num_hidden_layers=2).model_dump()

    def build(folder: str = "run", **changes: Any) -> TrainConfig:
        return TrainConfig.parse(
            {
                "folder": str(tmp_path / folder),
                "model": model,
                "device": "cpu",
                "steps": 8,
                "data": {"seq_len": 24, "sources": [source], "held_out_share": 0.2},
                "batch": {"rows": 4, "micro_rows": 2},
                "schedule": {"learning_rate": 1e-2, "warmup_steps": 2},
                "balance": {
                    "bias_speed": 0.01,
                    "sequence_loss": 1e-3,
                    "dropping": {"exempt_share": 0.5},
                },
                "evaluation": {
                    "every_steps": 3,
                    "rows": 3,
                    "domains": {"lines": {**source, "split": "held_out"}},
                },
                "checkpoint": {"every_steps": 3, "keep": 2},
                **changes,
            }
        )

    return build
