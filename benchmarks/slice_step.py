"""How fast and how large is a training step of each variant, and of transformers on the same work?

One checkpoint of random weights, the same trained experts, sequences and optimizer. Every variant
runs in a process of its own, and so does transformers: all experts held, the router free, gradients
of the trained experts alone kept (cut out of the whole stacks as soon as they exist). All of them
work once in each round, so that whatever drifts, drifts for all. On a GPU:
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


def described(runs: Sequence[dict[str, Any]], job: Job, peak_flops: float) -> dict[str, Any]:
    """A variant's numbers over the rounds."""
    tokens, kind = job.rows * job.sequence, VARIANTS[job.variant]
    plan = plan_of(kind, Reader(job.folder).config, job.trained)
    flops = train_flops(plan, mean_context(job.sequence)).total
    rounds = [typical_seconds(run) for run in runs]
    typical = median(rounds)
    numbers = {
        **{name: value for name, value in asdict(job).items() if name != "folder"},
        "seconds_per_step": round(typical, 4),
        "seconds_by_round": [round(seconds, 4) for seconds in rounds],
        "tokens_per_s": round(tokens / typical, 1),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "mfu": round(flops * tokens / typical / peak_flops, 4),
        "first_loss": round(runs[0]["losses"][0], 4),
    }
    if "peer" not in kind:
        numbers["planned_gpu_bytes"] = planned_peak(plan, kind, job)
    return numbers


def typical_seconds(run: Mapping[str, Any]) -> float:
    """Of a step; the first third of them warms up."""
    return median(run["seconds"][len(run["seconds"]) // 3 :])


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
    same work at its best: of each round, the median of the rounds, the lowest and the highest."""
    done = {name: case for name, case in cases.items() if "seconds_by_round" in case}
    masked, found = done.get("A masked"), dict[str, Any]()
    for name, case in done.items():
        peers = [done[peer]["seconds_by_round"] for peer in _peers_of(name) if peer in done]
        ours, beside = case["seconds_by_round"], dict[str, Any]()
        if masked is not None:
            beside["memory_of_masked"] = round(case["peak_bytes"] / masked["peak_bytes"], 3)
            beside["time_of_masked"] = _ratios(ours, masked["seconds_by_round"])
        if peers:
            best = [min(seconds) for seconds in zip(*peers, strict=True)]
            beside["speed_of_transformers"] = _ratios(best, ours)
        found[name] = beside
    return found


def _ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    found = {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {name: round(ratio, 3) for name, ratio in found.items()}


def _peers_of(name: str) -> list[str]:
    """Whose work is the same; that of adapters of experts is not to be had elsewhere."""
    if name in ("full", "LoRA on attention"):
        return [f"transformers {name}"]
    if name.startswith("transformers") or "LoRA" in name:
        return []
    return [peer for peer in VARIANTS if peer.startswith("transformers natural")]


def compare(names: Sequence[str], job: Job, rounds: int) -> dict[str, Any]:
    """Every variant once in each round."""
    peak, runs = _matmul_rate(job.device), {name: list[dict[str, Any]]() for name in names}
    failed = dict[str, Any]()
    for number in range(rounds):
        for name in [name for name in names if name not in failed]:
            try:
                runs[name].append(run_alone(replace(job, variant=name)))
            except subprocess.CalledProcessError as error:
                failed[name] = {"error": f"exit {error.returncode}; see above"}
                print(f"{name:<34} failed", flush=True)
                continue
            seconds = typical_seconds(runs[name][-1])
            print(f"round {number + 1} | {name:<34} {seconds:8.4f} s", flush=True)
    cases = {
        name: described(runs[name], replace(job, variant=name), peak)
        for name in names
        if name not in failed
    }
    return cases | failed


def line(name: str, case: Mapping[str, Any]) -> str:
    """What is printed of a variant."""
    if "error" in case:
        return f"{name:<34} failed"
    speed = case.get("speed_of_transformers")
    beside = (
        f"{speed['ratio']:.2f} ({speed['lowest']:.2f} to {speed['highest']:.2f})" if speed else "–"
    )
    time_of_masked = case.get("time_of_masked", {}).get("ratio", nan)
    return (
        f"{name:<34} {case['tokens_per_s']:>10,.1f} tok/s | {case['mfu']:.1%} of the matmul rate | "
        f"{case['peak_bytes'] / 1e9:6.2f} GB, planned on a GPU "
        f"{case.get('planned_gpu_bytes', nan) / 1e9:6.2f} | of A's: time {time_of_masked:.2f}, "
        f"memory {case.get('memory_of_masked', nan):.2f} | of transformers' speed {beside}"
    )


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
    parser.add_argument("--steps", type=int, default=6, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="tiny-v2, few short steps")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.sequence, options.steps, options.rounds = "tiny-v2", 256, 3, 1
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
        cases = compare(options.variants, job, options.rounds)
    for name, beside in compared(cases).items():
        cases[name] |= beside
    print(*(line(name, case) for name, case in cases.items()), sep="\n")
    what = f"slice-step-quick_{options.preset}" if options.quick else f"slice-step_{options.preset}"
    print(write_result(what, cases, options.threads))


if __name__ == "__main__":
    main()
