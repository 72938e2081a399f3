"""One run of one variant of fine-tuning, in a process of its own: train, merge, evaluate."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure.alone import run_module
from benchmarks.measure.machine import watching_others
from moesaic.config.train import TrainConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.esft.absorb import merge_adapter
from moesaic.esft.merge import merge_shards
from moesaic.esft.recipe import train_slice
from moesaic.model.build import load_model
from moesaic.runlog import peak_bytes, read_run
from moesaic.train.evaluate import HeldOut, evaluate
from moesaic.train.loop import train

TASK = "math"
DOMAINS = ("english", "french", "chinese", "rust")
"""What the base learns, and what is to be retained."""
TRAINED, KEPT = 8, 16
"""Experts of each layer that are trained; that ``frozen-kept`` holds beside them."""

VARIANTS: dict[str, dict[str, Any] | None] = {
    "A masked": {"variant": "masked"},
    "B frozen-kept": {"variant": "frozen-kept", "frozen_experts": KEPT},
    "C natural": {"variant": "natural"},
    "D natural, int8": {"variant": "natural", "hold": "int8"},
    "D natural, int4": {"variant": "natural", "hold": "int4"},
    "E natural, disk": {"variant": "natural", "hold": "disk"},
    "LoRA natural": {
        "variant": "natural",
        "lora": {"rank": 8, "alpha": 16.0, "targets": ["experts"]},
    },
    "full": None,
}
"""The ``esft`` table of each; None trains everything."""
_RATES = {"LoRA natural": 1e-2}
_RATE = 1e-3
"""Peak learning rate; adapters begin at zero and take about ten times that."""
NOTE = "One learning rate served all variants but LoRA, which took ten times that; none was tuned."


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to train, and how often."""

    base_steps: int
    steps: int
    rows: int
    """Sequences in a step."""
    seq_len: int
    seeds: int
    held_out_rows: int
    """Sequences of each domain that are evaluated."""


def run_config(home: Path, effort: Effort, rate: float, steps: int, **changes: Any) -> TrainConfig:
    """What all runs have in common."""
    return TrainConfig.parse(
        {
            "folder": str(home),
            "batch": {"rows": effort.rows},
            "steps": steps,
            "precision": "mixed",
            "schedule": {
                "learning_rate": {"start": rate, "changes": [_FALL]},
                "warmup_steps": steps // 20,
            },
            "checkpoint": {"every_steps": steps},
            **changes,
        }
    )


_FALL = {"at": "50%", "until": "100%", "times": 0.1, "shape": "cosine"}


def setting(name: str) -> dict[str, Any]:
    """What makes a variant differ from the others."""
    return {"esft": VARIANTS[name], "learning_rate": _RATES.get(name, _RATE)}


def task(effort: Effort, seed: int) -> dict[str, Any]:
    """The data that is learned."""
    return {"sources": [{"path": f"corpus:{TASK}"}], "seq_len": effort.seq_len, "seed": seed}


@dataclass(frozen=True, slots=True)
class Job:
    """One run, as a process of its own gets it."""

    name: str
    seed: int
    base: str
    selection: str | None
    home: str
    effort: Effort
    threads: int


def work(job: Job) -> dict[str, Any]:
    """Train, merge, evaluate."""
    torch.set_num_threads(job.threads)
    home, esft = Path(job.home), VARIANTS[job.name]
    changes: dict[str, Any] = {"model": job.base}
    if esft is not None:
        wanted = {key: value for key, value in esft.items() if key != "frozen_experts"}
        if wanted["variant"] == "frozen-kept":
            wanted["variant"] = "masked"  # the selection file names the kept ones
        changes["esft"] = {"selection": job.selection, **wanted}
    changes |= evaluated(job.effort, job.seed)
    rate = _RATES.get(job.name, _RATE)
    config = run_config(home / "run", job.effort, rate, job.effort.steps, **changes)
    start = peak_bytes()
    with watching_others() as seen:
        trained = None if esft is None else train_slice(config)
        result = train(config) if trained is None else trained.training
    merged = result.folder.model
    if trained is not None and esft is not None:
        merged = home / "merged"
        assert trained.shard is not None
        if "lora" in esft:
            merge_adapter(job.base, trained.shard, merged)
        else:
            merge_shards(job.base, [trained.shard], merged)
    steps = read_run(result.folder.record).of("step")
    speed = median(line["tokens_per_s"] for line in steps[len(steps) // 3 :])
    return {
        "as_trained": {line["domain"]: line["loss"] for line in result.evaluations},
        "merged": losses(merged, config),
        "tokens_per_s": speed,
        "seconds_per_step": round(job.effort.rows * job.effort.seq_len / speed, 4),
        "peak_over_start_bytes": steps[-1]["memory_bytes"] - start,
        "others": seen.others,
    }


def losses(folder: Path | str, config: TrainConfig) -> dict[str, float]:
    """Held-out loss of a whole checkpoint by domain."""
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    return {
        domain: evaluate(model, HeldOut.read(config, domain, tokenizer)).loss
        for domain in (*DOMAINS, TASK)
    }


def evaluated(effort: Effort, seed: int) -> dict[str, Any]:
    """The part of a run file that says what is read and what is held out."""
    domains = {domain: f"corpus:{domain}" for domain in (*DOMAINS, TASK)}
    rows = effort.held_out_rows
    return {
        "data": task(effort, seed),
        "evaluation": {"every_steps": effort.steps, "rows": rows, "domains": domains},
    }


def run_alone(job: Job) -> dict[str, Any]:
    """The job in a process of its own."""
    return run_module("benchmarks.measure.fine_tuning", asdict(job))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(work(Job(**{**given, "effort": Effort(**given["effort"])}))))
