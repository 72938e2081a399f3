"""What does each variant of partial fine-tuning learn, keep and cost?

A small model is trained on several languages and code. From this base every variant learns maths
with the same experts, data and steps: the router masked to the trained experts (A), some more kept
frozen (B), all of them natural (C), natural with the untrained ones in 8 or 4 bits (D) or read from
disk (E), LoRA on the same experts, and everything trained. Held-out loss of the task as trained and
merged, of every other domain, tokens per second and peak memory, over several seeds.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.measure.chart import Panel, write_charts
from benchmarks.measure.fine_tuning import (
    DOMAINS,
    KEPT,
    NOTE,
    TASK,
    TRAINED,
    VARIANTS,
    Effort,
    Job,
    evaluated,
    losses,
    run_alone,
    run_config,
    setting,
    task,
)
from benchmarks.measure.results import write_result
from benchmarks.measure.seeds import Claim, interval, shown
from moesaic.config.data import DataConfig
from moesaic.config.esft import EsftConfig
from moesaic.data.loader import Loader
from moesaic.data.tokenizer import Tokenizer
from moesaic.esft.score import first_tokens, score_experts
from moesaic.esft.select import select, write_selection
from moesaic.model.build import load_model
from moesaic.runlog import hardware
from moesaic.train.loop import train

_PRESET = "tiny-v3"
FULL = Effort(base_steps=500, steps=100, rows=16, seq_len=256, seeds=3, held_out_rows=32)
CLAIMS = (
    Claim("integers of 8 bits learn what weights do", "D natural, int8", "C natural", "", 0.01),
    Claim("integers of 4 bits learn what weights do", "D natural, int4", "C natural", "", 0.01),
    Claim(
        "experts read from disk learn what held ones do", "E natural, disk", "C natural", "", 0.01
    ),
    Claim("integers of 8 bits beat the masked slice, merged", "D natural, int8", "A masked", ""),
    Claim("integers of 4 bits beat the masked slice, merged", "D natural, int4", "A masked", ""),
)
"""What was expected of the merged task's loss, seed by seed."""
QUICK = Effort(base_steps=20, steps=6, rows=4, seq_len=128, seeds=1, held_out_rows=4)


def make_base(home: Path, effort: Effort) -> Path:
    """Train the base on every domain but the task's."""
    config = run_config(
        home,
        effort,
        3e-3,
        effort.base_steps,
        model={"preset": _PRESET, "initializer_range": 0.02, "num_nextn_predict_layers": 0},
        data={
            "sources": [{"path": f"corpus:{domain}"} for domain in DOMAINS],
            "seq_len": effort.seq_len,
        },
        balance={"bias_speed": 0.01, "sequence_loss": 1e-4},
    )
    return train(config).folder.model


def choose(base: Path, home: Path, effort: Effort) -> dict[str, Path]:
    """The trained experts, once for all runs: a selection file by variant."""
    tokenizer = Tokenizer.load(base)
    loader = Loader(DataConfig.parse(task(effort, 0)), tokenizer, effort.rows)
    scores = score_experts(load_model(base), first_tokens(loader, 32 * 1024))
    files = {}
    for name in ("masked", "frozen-kept", "natural"):
        kept = KEPT if name == "frozen-kept" else None
        esft = EsftConfig(experts=TRAINED, variant=name, frozen_experts=kept)
        files[name] = home / f"{name}.json"
        write_selection(files[name], select(scores, esft))
    return files


def described(runs: Sequence[Mapping[str, Any]], before: Mapping[str, float]) -> dict[str, Any]:
    """A variant's numbers over its seeds."""
    rises = {
        domain: interval([run["merged"][domain] - before[domain] for run in runs])
        for domain in DOMAINS
    }
    return {
        "task_as_trained": interval([run["as_trained"][TASK] for run in runs]),
        "task_merged": interval([run["merged"][TASK] for run in runs]),
        "gap": interval([run["merged"][TASK] - run["as_trained"][TASK] for run in runs]),
        "retained_rise": interval([mean(_rises(run, before)) for run in runs]),
        "rise": rises,
        "tokens_per_s": round(median(run["tokens_per_s"] for run in runs), 1),
        "seconds_per_step": round(median(run["seconds_per_step"] for run in runs), 4),
        "others": max(run["others"] or 0.0 for run in runs),
        "peak_over_start_bytes": max(run["peak_over_start_bytes"] for run in runs),
        "runs": list(runs),
    }


def _rises(run: Mapping[str, Any], before: Mapping[str, float]) -> list[float]:
    return [run["merged"][domain] - before[domain] for domain in DOMAINS]


def compare(names: Sequence[str], effort: Effort, threads: int) -> dict[str, Any]:
    """Train every variant with every seed from one base."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        base = make_base(home / "base", effort)
        selections = choose(base, home, effort)
        config = run_config(home / "none", effort, 1.0, 1, model=str(base), **evaluated(effort, 0))
        before = losses(base, config)
        print("base", *(f"{domain} {loss:.4f}" for domain, loss in before.items()), sep=" | ")
        common = {"model": _PRESET, "trained": TRAINED, "note": NOTE}
        cases: dict[str, Any] = {"base": {**asdict(effort), "loss": before, "setting": common}}
        for name in names:
            esft, runs = VARIANTS[name], []
            selection = None if esft is None else str(selections[esft["variant"]])
            for seed in range(effort.seeds):
                at = str(home / name / str(seed))
                job = Job(name, seed, str(base), selection, at, effort, threads)
                runs.append(run_alone(job))
            cases[name] = {"setting": setting(name), **described(runs, before)}
            print(_line(name, cases[name]), flush=True)
    return cases


def compared(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Every claim both of whose sides were trained, and its verdict."""
    losses = {
        name: [run["merged"][TASK] for run in case.get("runs", ())] for name, case in cases.items()
    }
    return {
        claim.text: claim.compare(losses[claim.left], losses[claim.right])
        for claim in CLAIMS
        if {claim.left, claim.right} <= losses.keys()
    }


def _line(name: str, case: Mapping[str, Any]) -> str:
    parts = [
        f"{label} {shown(case[key])}"
        for label, key in (
            ("task as trained", "task_as_trained"),
            ("merged", "task_merged"),
            ("other domains", "retained_rise"),
        )
    ]
    speed, peak = case["tokens_per_s"], case["peak_over_start_bytes"] / 2**20
    cost = [f"{case['seconds_per_step']:.3f} s/step", f"{speed:,.0f} tok/s", f"{peak:,.0f} MiB"]
    return " | ".join([f"{name:<16}", *parts, *cost])


def draw(path: Path, cases: Mapping[str, Any]) -> None:
    """What was learned against what was forgotten, one point per seed."""
    before = cases["base"]["loss"]
    names = [name for name in cases if name != "base"]
    seeds = {name: cases[name]["runs"] for name in names}
    panels = [
        Panel(
            "forgotten: rise of the other domains' loss, merged",
            "held-out loss of the task, merged",
            {
                name: [(run["merged"][TASK], mean(_rises(run, before))) for run in runs]
                for name, runs in seeds.items()
            },
            as_points=True,
        ),
        Panel(
            "loss of the task, merged",
            "loss of the task, as trained",
            {
                name: [(run["as_trained"][TASK], run["merged"][TASK]) for run in runs]
                for name, runs in seeds.items()
            },
            as_points=True,
        ),
    ]
    write_charts(path, "Variants of partial fine-tuning (tiny-v3, maths)", panels)


def main() -> None:
    """Train, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="few small steps, one seed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    effort = QUICK if options.quick else FULL
    effort = replace(
        effort, steps=options.steps or effort.steps, seeds=options.seeds or effort.seeds
    )
    cases = compare(options.variants, effort, options.threads)
    report("variants-quick" if options.quick else "variants", cases, options.threads)


def report(what: str, cases: dict[str, Any], threads: int) -> None:
    """Write the result file with its chart, with what was measured before on this day."""
    path = write_result(what, cases, threads)
    written = json.loads(path.read_text(encoding="utf-8"))["cases"]
    claims = compared(written)
    write_result(what, {"base": {**written["base"], "claims": claims}}, threads)
    draw(path.with_suffix(".svg"), written)
    for text, found in claims.items():
        print(f"{text}: {shown(found['difference'], '+')} | {found['verdict']}")
    print(path)


if __name__ == "__main__":
    main()
