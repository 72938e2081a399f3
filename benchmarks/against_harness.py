"""Are our scores those of lm-evaluation-harness, on every item of a data set?

Both get the same files. First with a scripted model, whose right answers are known from the rows;
then, with ``--model``, with a checkpoint that the harness asks through transformers and we through
our engine. Printed, and written as JSON: every metric on both sides, how many requests and how many
items differ. It ends with an error if the scripted model's do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import lm_harness
from benchmarks.measure.questions import PUBLISHED, QUICK_ROWS, Questions, rows_of
from benchmarks.measure.results import write_result
from moesaic.eval.requests import (
    Answer,
    Generation,
    GenerationAnswer,
    Likelihood,
    LikelihoodAnswer,
    Request,
)
from moesaic.eval.run import evaluate
from moesaic.eval.samples import read_samples
from moesaic.eval.task import Task
from moesaic.eval.tasks.registry import find_task
from moesaic.planner.table import Column, Row, Table
from moesaic.runlog import hardware

_ROWS = 64
"""That transformers is fed at once."""
_ROUNDING = 1e-4
"""Of a log-probability: sums over batches of another shape round otherwise."""
_LIMITS = ("limit", "max_length", "max_new_tokens")
Scores = Mapping[str, float]


def in_their_form(request: Request) -> list[Any]:
    """A request in the harness's form."""
    if isinstance(request, Likelihood):
        return [request.context, request.continuation]
    assert isinstance(request, Generation)
    return [request.prompt, list(request.stop)]


def without_drawing(request: Sequence[Any]) -> list[Any]:
    """The harness's own, without the settings of drawing."""
    text, rest = request
    return [text, rest["until"] if isinstance(rest, dict) else rest]


def scripted(request: Request, answers: Mapping[str, Sequence[str]]) -> Answer:
    """What the scripted model says."""
    if isinstance(request, Likelihood):
        p = lm_harness.log_probability(request.context, request.continuation)
        return LikelihoodAnswer(p, is_greedy=False, tokens=1)
    assert isinstance(request, Generation)
    return GenerationAnswer(lm_harness.writes(request.prompt, answers), tokens=1)


def shares(values: Mapping[str, float | tuple[float, float]]) -> dict[str, float]:
    """The metrics of an item that are shares, as those of these tasks all are."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def by_script(task: Task, questions: Questions, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Every item of a task, asked and judged on both sides."""
    requests = other = 0
    sums: dict[str, float] = {}
    for item, their in zip(task.items, theirs["items"][task.name], strict=True):
        ours = list(task.requests(item))
        requests += [in_their_form(one) for one in ours] != [
            without_drawing(one) for one in their["requests"]
        ]
        answers = [scripted(one, questions.answers) for one in ours]
        values = shares(task.judge(item, answers).values)
        other += values != their["values"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    n = len(task.items)
    ours = {name: total / n for name, total in sums.items()}
    known = questions.known(task.name)
    return compared(n, ours, theirs["means"][task.name], other, known) | {
        "requests_that_differ": requests
    }


def by_model(
    name: str, model: Path, home: Path, limits: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Every item of a task, answered by a checkpoint on both sides."""
    out, began = home / f"ours-{name}", time.monotonic()
    found = evaluate(model, [name], out, data=home, **limits).tasks[name].scores
    samples = read_samples(out / "samples" / f"{name}.jsonl")
    values = [shares(one.judgement.values) for one in samples]
    items = theirs["items"][name]
    other = sum(ours != their["values"] for ours, their in zip(values, items, strict=True))
    unlike = sum(
        not alike(ours.answers, their["answers"])
        for ours, their in zip(samples, items, strict=True)
    )
    ours = {metric: score.estimate.value for metric, score in found.metrics.items()}
    seconds = round(time.monotonic() - began, 1)
    told = {"items_answered_otherwise": unlike, "our_seconds": seconds}
    return compared(found.n, ours, theirs["means"][name], other) | told


def alike(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Any]) -> bool:
    """Whether texts are the same, and log-probabilities but for rounding."""
    for mine, their in zip(ours, theirs, strict=True):
        if isinstance(their, str):
            if mine["text"] != their:
                return False
        elif abs(mine["log_probability"] - float(their[0])) > _ROUNDING * abs(float(their[0])):
            return False
    return True


def compared(
    n: int,
    ours: Scores,
    means: Mapping[str, Any],
    items: int,
    known: Scores | None = None,
) -> dict[str, Any]:
    """Both sides' scores, and what differs."""
    theirs = {name: means[name if "," in name else f"{name},none"] for name in ours}
    most = max(abs(ours[name] - theirs[name]) for name in ours)
    found = {"n": n, "ours": dict(ours), "harness": theirs, "largest_difference": most}
    told = {} if known is None else {"known": dict(known)}
    return {**found, **told, "items_that_differ": items}


def ask_harness(home: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness says, in a process of its own."""
    home.mkdir()
    (home / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-P", lm_harness.__file__, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm-evaluation-harness failed:\n{done.stderr[-3000:]}")
    return json.loads((home / "result.json").read_text())


def settings_of(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """How the harness is called: with the script and, where there is a model, with that."""
    common = {"tasks": names, "limit": options.limit}
    if options.model is None:
        return {"scripted": common}
    arguments = f"pretrained={options.model},dtype=float32,max_length={options.max_length}"
    by_transformers = {
        "model": "hf",
        "model_args": arguments,
        "device": "cpu",
        "batch_size": _ROWS,
        "gen_kwargs": f"max_gen_toks={options.max_new_tokens}",
    }
    return {"scripted": common, "model": {**common, **by_transformers}}


def measure(questions: Questions, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Every task, scripted and, where there is a model, answered by it."""
    names, model, data = list(questions.rows), str(options.model), questions.folder
    tasks = {name: (PUBLISHED[name], questions.files(name)) for name in names}
    limits = {each: getattr(options, each) for each in _LIMITS}
    cases: dict[str, Any] = {}
    for kind, settings in settings_of(names, options).items():
        began = time.monotonic()
        asked = {"answers": questions.answers, "evaluations": {kind: settings}}
        theirs = ask_harness(home / kind, {"tasks": tasks, "groups": [], **asked})[kind]
        seconds = round(time.monotonic() - began, 1)
        for name in names:
            if kind == "scripted":
                task = find_task(name, data, options.limit)
                found = by_script(task, questions, theirs)
            else:
                found = by_model(name, Path(model), data, limits, theirs)
                found["harness_seconds_of_all_tasks"] = seconds
            cases[f"{name}, {kind}"] = found
            print(f"{name}, {kind}: {json.dumps(found)}", flush=True)
    return cases


def table(cases: Mapping[str, Any]) -> Table:
    """A row for every metric."""
    shown = "{:.6f}".format
    columns = (
        Column("case", "task, model", left=True),
        Column("metric", "metric", left=True),
        Column("n", "items", "{:,}".format),
        Column("ours", "ours", shown),
        Column("harness", "harness", shown),
        Column("known", "known", shown),
        Column("items", "items that\ndiffer"),
    )
    rows = tuple(
        Row(
            {
                "case": name,
                "metric": metric,
                "n": case["n"],
                "ours": value,
                "harness": case["harness"][metric],
                "known": case.get("known", {}).get(metric),
                "items": case["items_that_differ"],
            }
        )
        for name, case in cases.items()
        for metric, value in case["ours"].items()
    )
    return Table("harness", "Against lm-evaluation-harness", columns, rows)


def main() -> None:
    """Ask, compare, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets, as for moesaic eval")
    parser.add_argument("--tasks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--model", type=Path, help="a checkpoint with a tokenizer, asked too")
    parser.add_argument("--limit", type=int, help="only so many items of each task")
    parser.add_argument("--max-length", type=int, default=256, help="tokens the model may see")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="a few made-up items, no model")
    options = parser.parse_args()
    if not options.quick and options.data is None:
        parser.error("--data is missing; name the folder with the data sets, or give --quick")
    torch.set_num_threads(options.threads)
    rows = QUICK_ROWS if options.quick else {n: rows_of(n, options.data) for n in options.tasks}
    with tempfile.TemporaryDirectory() as folder:
        questions = Questions.write(Path(folder) / "data", rows, options.limit)
        cases = measure(questions, options, Path(folder))
    what = "harness-quick" if options.quick else "harness"
    print(table(cases).to_markdown(), write_result(what, cases, options.threads), sep="\n\n")
    different = [
        name
        for name, case in cases.items()
        if "known" in case and (case["items_that_differ"] or case["largest_difference"] > 1e-12)
    ]
    if different:
        raise SystemExit(f"not the harness's scores: {', '.join(different)}")


if __name__ == "__main__":
    main()
