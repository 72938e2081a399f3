"""How fast and how large is a training step of each variant, and of transformers on the same work?

One checkpoint of random weights, the same trained experts, sequences and optimizer. Every variant
runs in a process of its own, and so does transformers: all experts held, the router free, gradients
of the trained experts alone kept (cut out of the whole stacks as soon as they exist). On a GPU:
`python -m benchmarks.slice_step --preset deepseek-v2-lite --device cuda --sequence 4096`.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import nan
from statistics import median
from typing import Any

import torch

from benchmarks.measure.machine import measure_ceiling
from benchmarks.measure.results import write_result
from benchmarks.measure.slice_steps import VARIANTS, Job, run_alone
from moesaic.checkpoint.fresh import write_fresh
from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.planner.adapters import Adapters
from moesaic.planner.flops import mean_context, train_flops
from moesaic.planner.memory import train_memory
from moesaic.planner.params import Plan, params
from moesaic.planner.precision import PRECISIONS
from moesaic.runlog import hardware

_WEIGHT_SIZE = 0.05
"""Standard deviation of fresh weights, large enough that the loss tells variants apart."""


def described(found: dict[str, Any], job: Job, peak_flops: float) -> dict[str, Any]:
    """A variant's numbers; the first steps are left out of the time."""
    tokens, kind = job.rows * job.sequence, VARIANTS[job.variant]
    plan = plan_of(kind, Reader(job.folder).config, job.trained)
    flops = train_flops(plan, mean_context(job.sequence)).total
    typical = median(found["seconds"][len(found["seconds"]) // 3 :])
    numbers = {
        **{name: value for name, value in asdict(job).items() if name != "folder"},
        "seconds_per_step": round(typical, 4),
        "tokens_per_s": round(tokens / typical, 1),
        "peak_bytes": found["peak_bytes"],
        "mfu": round(flops * tokens / typical / peak_flops, 4),
        "first_loss": round(found["losses"][0], 4),
    }
    if "peer" not in kind:
        numbers["planned_gpu_bytes"] = planned_peak(plan, kind, job)
    return numbers


def plan_of(kind: Mapping[str, Any], config: ModelConfig, trained: int) -> Plan:
    """What is trained and held in a variant; the peer holds all experts as they are."""
    if "full" in kind:
        return params(config, None)
    kept = None if "peer" in kind else kind.get("kept", 0)
    adapters = Adapters.of(config, kind["lora"], trained) if "lora" in kind else None
    return replace(
        params(config, trained, config.experts - trained if kept is None else kept),
        hold=kind.get("hold", "weights"),
        hold_linears=kind.get("linears", "weights"),
        park_embedding=kind.get("parked", False),
        adapters=adapters,
    )


def planned_peak(plan: Plan, kind: Mapping[str, Any], job: Job) -> int:
    """What the planner says that it takes on a GPU."""
    precision = PRECISIONS["bfloat16"].changed(kind.get("states", "weights"), "weights")
    return train_memory(plan, precision, job.rows, job.sequence, job.recompute).total


def compared(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Memory and time beside those of the masked slice, speed beside that of transformers on the
    same work at its best."""
    done = {name: case for name, case in cases.items() if "tokens_per_s" in case}
    masked, found = done.get("A masked"), dict[str, Any]()
    for name, case in done.items():
        peers = [done[peer]["tokens_per_s"] for peer in _peers_of(name) if peer in done]
        beside: dict[str, float] = {}
        if masked is not None:
            beside["memory_of_masked"] = round(case["peak_bytes"] / masked["peak_bytes"], 3)
            beside["time_of_masked"] = round(
                case["seconds_per_step"] / masked["seconds_per_step"], 3
            )
        if peers:
            beside["speed_of_transformers"] = round(case["tokens_per_s"] / max(peers), 3)
        found[name] = beside
    return found


def _peers_of(name: str) -> list[str]:
    """Whose work is the same; that of adapters of experts is not to be had elsewhere."""
    if name in ("full", "LoRA on attention"):
        return [f"transformers {name}"]
    if name.startswith("transformers") or "LoRA" in name:
        return []
    return [peer for peer in VARIANTS if peer.startswith("transformers natural")]


def compare(names: Sequence[str], job: Job) -> dict[str, Any]:
    """Every variant, and its speed against that of transformers."""
    peak = _matmul_rate(job.device)
    cases = {}
    for name in names:
        alone = replace(job, variant=name)
        try:
            cases[name] = described(run_alone(alone), alone, peak)
        except subprocess.CalledProcessError as error:
            cases[name] = {"error": f"exit {error.returncode}; see above"}
            print(f"{name:<34} failed")
            continue
        found = cases[name]
        planned = found.get("planned_gpu_bytes", 0) / 1e9
        print(
            f"{name:<34} {found['tokens_per_s']:>10,.1f} tok/s | "
            f"{found['peak_bytes'] / 1e9:6.2f} GB, planned on a GPU {planned or nan:6.2f} | "
            f"{found['mfu']:.1%} of the matmul rate | "
            f"first loss {found['first_loss']}",
            flush=True,
        )
    return cases


def _matmul_rate(device: str) -> float:
    if device == "cpu":
        return measure_ceiling(torch.Generator().manual_seed(0)).bfloat16
    left, right = torch.randn(2, 8192, 8192, device=device).bfloat16()
    for _ in range(3):
        torch.mm(left, right)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(left, right)
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def main() -> None:
    """Measure the variants that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="mid-v2")
    parser.add_argument("--folder", help="a checkpoint that is there; else one is written")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--trained", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="tiny-v2, few short steps")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.sequence, options.steps = "tiny-v2", 256, 3
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as home:
        folder = options.folder or f"{home}/base"
        if options.folder is None:
            config = get_preset(options.preset).changed(initializer_range=_WEIGHT_SIZE)
            write_fresh(folder, config, "bfloat16", 0, lambda spec: None)
        job = Job(
            "",
            folder,
            options.trained,
            options.rows,
            options.sequence,
            options.steps,
            options.device,
            options.threads,
            options.recompute,
        )
        cases = compare(options.variants, job)
    for name, beside in compared(cases).items():
        cases[name] |= beside
        print(f"{name:<34}", *(f"{what} {value}" for what, value in beside.items()), sep=" | ")
    what = f"slice-step-quick_{options.preset}" if options.quick else f"slice-step_{options.preset}"
    print(write_result(what, cases, options.threads))


if __name__ == "__main__":
    main()
