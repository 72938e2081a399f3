"""The models of the architecture study: one run file, and what makes each of them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import moesaic
from moesaic.config.load import read_run_file
from moesaic.config.model import ModelConfig
from moesaic.config.train import TrainConfig
from moesaic.planner.flops import mean_context, train_flops
from moesaic.planner.params import params
from moesaic.runlog import RunRecord, read_run
from moesaic.train.folder import RunFolder
from moesaic.train.loop import train
from moesaic.train.setup import prepare_tokenizer

RECIPE = Path(moesaic.__file__).parent / "recipes" / "study.toml"


def _sparse(preset: str, width: int, *others: str) -> tuple[str, ...]:
    return (f"model.preset={preset}", f"model.moe_intermediate_size={width}", *others)


_EVEN = "balance.expert_loss=0.01"
"""What the paper's validation models were balanced with, its section 4.1.3."""
_DEEPSEEK_MOE = _sparse("deepseek-moe-2b", 48, _EVEN)
_V3_ROUTER = (
    "model.model_type=deepseek_v3",
    "model.scoring_func=sigmoid",
    "model.topk_method=noaux_tc",
    "model.n_group=1",
    "model.topk_group=1",
    "model.norm_topk_prob=true",
    "model.routed_scaling_factor=2.5",
)

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "Dense": (),
    "Hash Layer": _sparse("deepseek-moe-2b-hash", 192),
    "Switch": _sparse("deepseek-moe-2b-switch", 192, _EVEN),
    "GShard": _sparse("deepseek-moe-2b-gshard", 192, _EVEN),
    "GShard ×1.5": _sparse("deepseek-moe-2b-gshard", 288, _EVEN),
    "DeepSeekMoE": _DEEPSEEK_MOE,
    "DeepSeekMoE + MTP": (
        *_DEEPSEEK_MOE,
        "model.model_type=deepseek_v3",
        "model.num_nextn_predict_layers=1",
    ),
    "DeepSeekMoE, V3 router": (
        *_sparse("deepseek-moe-2b", 48, *_V3_ROUTER),
        "balance.bias_speed=0.01",
        "balance.sequence_loss=0.0001",
    ),
    "DeepSeekMoE, none shared": (
        *_DEEPSEEK_MOE,
        "model.n_routed_experts=64",
        "model.n_shared_experts=0",
        "model.num_experts_per_tok=8",
    ),
    "Dense ×16": ("model.intermediate_size=3072",),
}
"""What each changes in the run file, written as for ``--set``.

Source: DeepSeekMoE (arXiv 2401.06066) sections 4.2 to 4.4; DeepSeek-V3 (arXiv 2412.19437)
sections 2.1.2 and 2.2.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one finished run came to."""

    losses: dict[str, float]
    """Held-out loss at the end by domain, in nats per token."""
    curve: tuple[tuple[int, float], ...]
    """Step and held-out loss, mean over the domains."""
    tokens: int
    """Tokens seen."""
    tokens_per_s: float
    """Speed of the fastest tenth of the steps: where others use the machine, the others are slow
    by no fault of the model's."""
    max_violation: float | None
    """Mean MaxVio of the last fifth of the steps; None without experts."""

    @property
    def loss(self) -> float:
        """Mean over the domains."""
        return mean(self.losses.values())


def run_config(name: str, seed: int, home: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The settings of one run; fresh weights and the order of the data come from the seed.

    Args:
        name: the architecture.
        seed: of weights and data.
        home: folder of the study; the run's is inside.
        changes: written as for ``--set``, equal for all architectures.
    """
    folder = home / re.sub(r"\W+", "-", name.lower()) / f"seed-{seed}"
    own = [f"seed={seed}", f"data.seed={seed}", f"folder={json.dumps(str(folder))}"]
    return read_run_file(TrainConfig, RECIPE, [*ARCHITECTURES[name], *own, *changes])


def share_tokenizer(home: Path, changes: Sequence[str] = ()) -> str:
    """The setting that gives every run of a study the same tokenizer, trained at the first call."""
    config = run_config("Dense", 0, home, changes)
    prepare_tokenizer(config, home / "tokenizer")
    return f"tokenizer={json.dumps(str(home / 'tokenizer'))}"


def finish(config: TrainConfig) -> Outcome:
    """Train, or go on with training, unless the folder holds the finished run already."""
    path = RunFolder(Path(config.folder)).record
    record = read_run(path) if path.exists() else None
    if record is None or not _is_finished(record, config):
        train(config)
        record = read_run(path)
    return _outcome(record)


def _is_finished(record: RunRecord, config: TrainConfig) -> bool:
    same = record.start["config"] == config.model_dump(mode="json")
    return same and any(line["step"] == config.steps for line in record.of("evaluation"))


def _outcome(record: RunRecord) -> Outcome:
    by_step: dict[int, dict[str, float]] = {}
    for line in record.of("evaluation"):
        by_step.setdefault(line["step"], {})[line["domain"]] = line["loss"]
    steps = record.of("step")
    last = steps[-(len(steps) // 5 or 1) :]
    uneven = [line["max_violation_mean"] for line in last if "max_violation_mean" in line]
    speeds = [line["tokens_per_s"] for line in steps]
    return Outcome(
        losses=by_step[max(by_step)],
        curve=tuple((step, mean(losses.values())) for step, losses in sorted(by_step.items())),
        tokens=steps[-1]["tokens"],
        tokens_per_s=quantiles(speeds, n=10)[-1] if len(speeds) > 1 else speeds[0],
        max_violation=mean(uneven) if uneven else None,
    )


def sizes(model: ModelConfig, sequence: int) -> dict[str, Any]:
    """Parameters and operations of a model, as the planner counts them.

    Prediction modules are in the operations of training, and their own weights beside the totals.
    """
    counted = params(model, None)
    return {
        "parameters": counted.total,
        "activated": counted.activated,
        "prediction_parameters": counted.mtp - counted.mtp_copies,
        "train_flops_per_token": round(train_flops(counted, mean_context(sequence)).total),
    }
