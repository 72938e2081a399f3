"""Does DeepSeekMoE beat Dense, Hash Layer, Switch and GShard at equal parameters and data?

Small models in the proportions of the first paper's validation models are trained on the shipped
corpus, everything but the architecture equal. Printed, and written as JSON and as a chart: held-out
loss by domain with the 95 % interval over seeds, the differences seed by seed, and for every
published claim whether it is reproduced at this scale. Runs are kept: the same command goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console

from benchmarks.measure.architectures import (
    ARCHITECTURES,
    Outcome,
    finish,
    run_config,
    share_tokenizer,
    sizes,
)
from benchmarks.measure.results import write_result
from benchmarks.measure.seeds import Claim, interval
from benchmarks.measure.study_tables import draw, loss_table, size_table, verdicts
from moesaic.config.model import ModelConfig
from moesaic.runlog import hardware

_V1, _V3 = "arXiv 2401.06066", "arXiv 2412.19437"
CLAIMS = (
    Claim("sparse beats dense", "Hash Layer", "Dense", f"1.932 : 2.060, {_V1} table 1"),
    Claim("learned routing beats hashing", "Switch", "Hash Layer", f"1.881 : 1.932, {_V1} table 1"),
    Claim("two experts beat one", "GShard", "Switch", f"1.867 : 1.881, {_V1} table 1"),
    Claim("fine experts beat whole", "DeepSeekMoE", "GShard", f"1.808 : 1.867, {_V1} table 1"),
    Claim(
        "fine experts match GShard ×1.5",
        "DeepSeekMoE",
        "GShard ×1.5",
        f"1.808 : 1.808, {_V1} table 2",
        tolerance=0.01,
    ),
    Claim(
        "fine experts near the dense bound",
        "DeepSeekMoE",
        "Dense ×16",
        f"1.808 : 1.806, {_V1} table 2",
        tolerance=0.01,
    ),
    Claim(
        "a shared expert helps",
        "DeepSeekMoE",
        "DeepSeekMoE, none shared",
        f"benchmarks only, {_V1} figure 3",
    ),
    Claim(
        "MTP costs no next-token loss",
        "DeepSeekMoE + MTP",
        "DeepSeekMoE",
        f"0.729 : 0.729 bits per byte, {_V3} table 4",
        tolerance=0.01,
    ),
)


QUICK_NAMES = ("Dense", "GShard", "DeepSeekMoE")
QUICK = ("steps=20", "batch.rows=4", "data.seq_len=128", "evaluation.rows=2")


def described(
    name: str,
    runs: Sequence[Outcome],
    changes: Sequence[str],
    other_rates: Mapping[float, Outcome] | None = None,
) -> dict[str, Any]:
    """An architecture's numbers over its seeds, and of the first seed at other learning rates."""
    config = run_config(name, 0, Path("runs/study"), changes)
    assert isinstance(config.model, ModelConfig)
    domains = runs[0].losses
    rate = config.schedule.learning_rate.start
    rates = {rate: runs[0], **(other_rates or {})}
    violations = [run.max_violation for run in runs if run.max_violation is not None]
    return {
        "settings": [*ARCHITECTURES[name], *changes],
        **sizes(config.model, config.data.seq_len),
        "learning_rate": rate,
        "tokens": runs[0].tokens,
        "seeds": len(runs),
        "held_out_loss": interval([run.loss for run in runs]),
        "by_domain": {name: interval([run.losses[name] for run in runs]) for name in domains},
        "held_out_loss_by_seed": [round(run.loss, 4) for run in runs],
        "first_seed_by_rate": {f"{rate:g}": round(rates[rate].loss, 4) for rate in sorted(rates)},
        "max_violation": round(mean(violations), 3) if violations else None,
        "tokens_per_s": round(median(run.tokens_per_s for run in runs)),
        "loss_curve": [
            (points[0][0], round(mean(loss for _, loss in points), 4))
            for points in zip(*(run.curve for run in runs), strict=True)
        ],
    }


def compared(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Every claim both of whose sides were trained: differences of equal seeds, and the verdict."""
    losses = {name: case["held_out_loss_by_seed"] for name, case in cases.items()}
    return {
        claim.text: {
            **claim.compare(losses[claim.left], losses[claim.right]),
            "first_seed_at_best_rates": _at_best_rates(cases[claim.left], cases[claim.right]),
        }
        for claim in CLAIMS
        if {claim.left, claim.right} <= losses.keys()
    }


def _at_best_rates(left: Mapping[str, Any], right: Mapping[str, Any]) -> float | None:
    """The first seed's difference with each side at its best of the same rates; None of one."""
    rates = left["first_seed_by_rate"].keys() & right["first_seed_by_rate"].keys()
    if len(rates) < 2:
        return None
    one, other = (min(side["first_seed_by_rate"][rate] for rate in rates) for side in (left, right))
    return round(one - other, 4)


def study(
    names: Sequence[str], seeds: int, home: Path, changes: Sequence[str]
) -> dict[str, list[Outcome]]:
    """Train every architecture with every seed, or read the runs that are there."""
    runs: dict[str, list[Outcome]] = {name: [] for name in names}
    shared = [*changes, share_tokenizer(home, changes)]
    for seed in range(seeds):
        for name in names:
            run = finish(run_config(name, seed, home, shared))
            runs[name].append(run)
            print(f"{name:<26} seed {seed} | held-out loss {run.loss:.4f}", flush=True)
    return runs


def main() -> None:
    """Train, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="tried with seed 0 too")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where runs are kept")
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="three models, few steps, one seed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.architectures or (QUICK_NAMES if options.quick else list(ARCHITECTURES))
    changes = [*(QUICK if options.quick else ())]
    changes += [f"steps={options.steps}"] if options.steps else []
    if options.quick:
        with tempfile.TemporaryDirectory() as home:
            runs = study(names, 1, Path(home), changes)
        report("study-quick", cases_of(runs, changes), options.threads)
        return
    runs: Mapping[str, Sequence[Outcome]] = {}
    for seeds in range(1, options.seeds + 1):  # what is known is written after every seed
        runs = study(names, seeds, options.runs, changes)
        report("study", cases_of(runs, changes), options.threads)
    if options.rates:
        others = try_rates(names, options.rates, options.runs, changes)
        report("study", cases_of(runs, changes, others), options.threads)


def try_rates(
    names: Sequence[str], rates: Sequence[float], home: Path, changes: Sequence[str]
) -> dict[str, dict[float, Outcome]]:
    """Every architecture with the first seed at other learning rates: name → rate → outcome."""
    found: dict[str, dict[float, Outcome]] = {name: {} for name in names}
    for rate in rates:
        faster = [*changes, f"schedule.learning_rate.start={rate}"]
        for name, (run,) in study(names, 1, home / f"rate-{rate:g}", faster).items():
            found[name][rate] = run
    return found


def cases_of(
    runs: Mapping[str, Sequence[Outcome]],
    changes: Sequence[str],
    others: Mapping[str, Mapping[float, Outcome]] | None = None,
) -> dict[str, Any]:
    """The result file's numbers of every architecture."""
    return {
        name: described(name, found, changes, (others or {}).get(name))
        for name, found in runs.items()
    }


def report(what: str, cases: dict[str, Any], threads: int) -> None:
    """Print the tables and write the result file with its chart."""
    path = write_result(what, cases, threads)
    written = json.loads(path.read_text(encoding="utf-8"))["cases"]
    cases = {name: written[name] for name in ARCHITECTURES if name in written}
    claims = compared(cases)
    write_result(what, {"claims": claims}, threads)
    draw(path.with_suffix(".svg"), cases)
    console = Console(width=200)
    for table in (size_table(cases), loss_table(cases), verdicts(claims)):
        console.print(table.to_rich(), "")
    console.print(str(path))


if __name__ == "__main__":
    main()
