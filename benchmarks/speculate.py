"""What do drafts of the prediction module gain, where calls bound a pass and where reading does?

Small V3 models with a prediction module, one of them deeper, are trained on the shipped corpus, or
a folder is given. Texts are written one at a time without drafts, with them, and with them as long
as they are measured to gain time, in turns: by the form that makes one framework call after
another, whose time hardly depends on the tokens in a pass, and by the compiled form, which does
little but read and multiply. What a pass of two tokens and a draft cost is measured in the same
run: tokens per pass over their sum is the gain to be expected. The engine of a server writes 1, 4
and 16 texts at once in the same three ways.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.drafting import CALL_BY_CALL, COMPILED, run_lap
from benchmarks.measure.results import write_result
from benchmarks.measure.together import told, write_together
from moesaic.config.infer import GenerateConfig
from moesaic.config.load import read_run_file
from moesaic.config.train import TrainConfig
from moesaic.data import corpus
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.pace import Counts
from moesaic.model.build import load_model
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer
from moesaic.planner.params import params
from moesaic.runlog import hardware
from moesaic.train.loop import train

FORMS = (CALL_BY_CALL, COMPILED)
AT_ONCE = (1, 4, 16)
"""Texts that an engine is asked for."""
TEMPERATURES = (0.0, 1.0)
_DECAY = 'start=3e-3, changes=[{at="50%", until="100%", to=0.0, shape="cosine"}]'
_TO_THE_MODULE = 'start=0.3, changes=[{at="50%", to=1.0}]'
MODELS: dict[int, list[str]] = {
    4: [],
    16: [
        *("model.num_hidden_layers=16", "batch.rows=8", "steps=1000"),
        f"schedule.learning_rate={{{_DECAY}}}",
        f"mtp_weight={{{_TO_THE_MODULE}}}",
    ],
}
"""By their layers: what the run file of the demo's model is changed to."""
_BEGINNING = 48
"""Tokens of each prompt."""
_CORPORA = ("english", "shakespeare")
"""Where prompts are from: what small models repeat greedily differs between them, and so does how
often drafts are right."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to write."""

    prompts: int
    tokens: int
    """Of each text."""
    rounds: int
    train_steps: int | None
    """None leaves the number of the recipe."""


FULL = Effort(prompts=12, tokens=80, rounds=3, train_steps=None)
QUICK = Effort(prompts=2, tokens=24, rounds=2, train_steps=2)


def measure(
    model: Transformer, form: str, prompts: Tensor, temperature: float, effort: Effort
) -> dict[str, Any]:
    """All ways in turns; a round writes every text."""
    config = GenerateConfig(max_new_tokens=effort.tokens, temperature=temperature, top_p=1.0)
    rows = prompts.tolist()
    run_lap(form, model, rows[:1], config)  # warms up
    laps = [
        run_lap(form, model, rows, config.changed(seed=1000 * lap)) for lap in range(effort.rounds)
    ]
    drafted = [count for lap in laps for count in lap.counts]
    alone = [count for lap in laps for count in lap.auto_counts]
    tokens_per_pass = total(drafted, "tokens") / total(drafted, "passes")
    two, draft = (median(lap.cost(of) for lap in laps) for of in ("pass of 2", "draft"))
    return {
        "tokens_per_s_without": round(1 / median(mean(lap.plain_s) for lap in laps), 1),
        **spread("gain", [lap.gain(lap.drafted_s) for lap in laps]),
        "acceptance": round(total(drafted, "accepted") / max(1, total(drafted, "drafts")), 3),
        "tokens_per_pass": round(tokens_per_pass, 3),
        "pass_of_two": round(two, 3),
        "draft": round(draft, 3),
        "gain_expected": round(tokens_per_pass / (two + draft), 3),
        **spread("gain_auto", [lap.gain(lap.auto_s) for lap in laps]),
        "drafted_auto": round(total(alone, "drafts") / total(alone, "passes"), 3),
    }


def compare_together(
    folder: Path,
    forms: Sequence[str],
    temperatures: Sequence[float],
    at_once: Sequence[int],
    threads: int,
    effort: Effort,
) -> dict[str, Any]:
    """The same by the engine of a server, from several texts at once."""
    model = load_model(folder, "float32").requires_grad_(requires_grad=False)
    model.config = model.config.changed(eos_token_id=None)  # every text is as long
    layers, cases = model.config.num_hidden_layers, dict[str, Any]()
    for form, temperature, n in product(forms, temperatures, at_once):
        torch.set_num_threads(1 if form == CALL_BY_CALL else threads)
        rows = beginnings(Tokenizer.load(folder), n).tolist()
        config = GenerateConfig(max_new_tokens=effort.tokens, temperature=temperature, top_p=1.0)
        rounds = effort.rounds * (5 if form == COMPILED else 1)  # a short one tells little
        found = told(write_together(form, model, rows, config, rounds), n * effort.tokens)
        name = f"{layers} layers, {form}, temperature {temperature:g}, {n} at once by the engine"
        cases[name] = {"threads": torch.get_num_threads(), **found}
        print(
            f"{name} | {found['tokens_per_s_without']:.0f} tok/s without"
            f" | {found['acceptance']:.0%} accepted, {found['tokens_per_pass']:.2f} tokens per pass"
            f" | gain {found['gain']:.2f} ({min(found['gains']):.2f} to {max(found['gains']):.2f})"
            f" | auto {found['gain_auto']:.2f} ({min(found['gains_auto']):.2f} to"
            f" {max(found['gains_auto']):.2f}), drafts in {found['drafted_auto']:.0%} of passes",
            flush=True,
        )
    return cases


def total(counts: Sequence[Counts], of: str) -> int:
    """A count of all texts together."""
    return sum(getattr(one, of) for one in counts)


def spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The median and each."""
    return {name: round(median(values), 3), f"{name}s": [round(value, 3) for value in values]}


@torch.inference_mode()
def read_by_two(model: Transformer, ids_BS: Tensor) -> float:
    """Weights that a pass of two neighbouring tokens reads, over those that one token reads."""
    trace = RoutingTrace()
    model(ids_BS, trace=trace)
    plan = params(model.config, train_experts=None)
    further = []
    for routing in trace.layers.values():
        chosen = routing.ids_TK.unflatten(0, ids_BS.shape)
        pairs = (chosen[:, :-1, :, None] == chosen[:, 1:, None, :]).any(-2)
        further.append(float((~pairs).sum(-1).float().mean()))
    return 1 + mean(further) * plan.per_expert_slot / plan.activated


def trained(layers: int, work: Path, effort: Effort) -> Path:
    """The model of the demo's first run file, changed; trained if it is not there yet."""
    folder = work / f"{layers}-layers"
    if (folder / "model").is_dir():
        return folder / "model"
    steps = []
    if effort.train_steps is not None:
        steps = [f"steps={effort.train_steps}", "evaluation.rows=1"]
    with as_file(files("moesaic.recipes") / "demo_base.toml") as path:
        changes = [f"folder={folder}", *MODELS[layers], *steps]
        config = read_run_file(TrainConfig, path, changes)
    train(config)
    return folder / "model"


def beginnings(tokenizer: Tokenizer, n: int) -> Tensor:
    """Held-out beginnings, of one corpus that the model was trained on and of the other in turn,
    int64 [n, tokens]."""
    corpora = []
    for domain in _CORPORA:
        texts = corpus.read(domain, "held_out")
        ids = [token for text in texts for token in tokenizer.encode(text)]
        corpora.append(torch.tensor(ids[: n * _BEGINNING]).view(n, _BEGINNING))
    return torch.stack(corpora, dim=1).flatten(0, 1)[:n]


def compare(
    folder: Path, forms: Sequence[str], temperatures: Sequence[float], threads: int, effort: Effort
) -> dict[str, Any]:
    """Some forms and temperatures with one model.

    Call by call one thread is faster than two: the products are too small to be shared.
    """
    model = load_model(folder, "float32").requires_grad_(requires_grad=False)
    prompts = beginnings(Tokenizer.load(folder), effort.prompts)
    layers, reads = model.config.num_hidden_layers, read_by_two(model, prompts)
    print(f"{layers} layers: two tokens in a pass read {reads:.2f} times the weights of one")
    cases: dict[str, Any] = {}
    for form, temperature in product(forms, temperatures):
        torch.set_num_threads(1 if form == CALL_BY_CALL else threads)
        name = f"{layers} layers, {form}, temperature {temperature:g}"
        found = measure(model, form, prompts, temperature, effort)
        cases[name] = {
            "threads": torch.get_num_threads(),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            **found,
            "read_by_two": round(reads, 3),
        }
        print(
            f"{name} | {found['tokens_per_s_without']:.0f} tok/s without"
            f" | {found['acceptance']:.0%} accepted"
            f" | {found['tokens_per_pass']:.2f} tokens / ({found['pass_of_two']:.2f} +"
            f" {found['draft']:.2f}) = {found['gain_expected']:.2f}, gain {found['gain']:.2f}"
            f" ({min(found['gains']):.2f} to {max(found['gains']):.2f})"
            f" | auto {found['gain_auto']:.2f}, drafts in {found['drafted_auto']:.0%} of passes"
        )
    return cases


def main() -> None:
    """Train where no folder is given, measure, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="a checkpoint folder with a prediction module")
    add("--layers", type=int, nargs="+", choices=MODELS, default=list(MODELS))
    add("--forms", nargs="+", choices=FORMS, default=FORMS)
    add("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    add("--at-once", type=int, nargs="*", default=AT_ONCE, help="texts that an engine is asked for")
    add("--no-alone", action="store_true", help="only by the engine")
    add("--work", type=Path, metavar="DIR", help="where trained models are kept")
    add("--prepare", action="store_true", help="only train the models")
    add("--threads", type=int, default=hardware()["cores"])
    add("--quick", action="store_true", help="hardly trained, few tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    effort, cases = QUICK if options.quick else FULL, dict[str, Any]()
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = [options.model] if options.model else []
        folders = folders or [trained(layers, work, effort) for layers in options.layers]
        for folder in [] if options.prepare else folders:
            chosen = options.forms, options.temperatures
            if not options.no_alone:
                cases.update(compare(folder, *chosen, options.threads, effort))
            several = options.at_once, options.threads, effort
            cases.update(compare_together(folder, *chosen, *several))
    if cases:
        name = "speculate-quick" if options.quick else "speculate"
        print(write_result(name, cases, options.threads))


if __name__ == "__main__":
    main()
