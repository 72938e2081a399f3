"""How fast does a CPU decode, beside transformers and llama.cpp, with weights of 16, 8 and 4 bits?

All sides have the same weights. With --llama, a folder with llama.cpp's llama-bench, llama-quantize
and llama-batched-bench, it takes part; with --transformers so does that, in bfloat16.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from benchmarks.measure.cases import SHAPES, peer_settings
from benchmarks.measure.decoding import (
    CONTEXT_OF_BATCH,
    Llama,
    Ours,
    Peer,
    Question,
    Side,
    best_peer,
    check_same_logits,
    file_of,
    weights_of,
)
from benchmarks.measure.machine import DISTURBED, Ceiling, measure_ceiling, watching_others
from benchmarks.measure.results import write_result
from moesaic.kernels.allocator import keep_freed_memory
from moesaic.kernels.native.pack import Form
from moesaic.runlog import hardware

_BFLOAT16 = {"weights", "lossless"}
"""Forms with the values that transformers has."""
_TRANSFORMERS = "takes part, too; in the best of its settings, or of those with TEXT in their name"


def main() -> None:
    """Answer every question that was asked, all sides in turns."""
    options = _options()
    keep_freed_memory()  # as the commands do, and what transformers is given
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(TemporaryDirectory()))
        weights = weights_of(options.shape, work)
        if options.prepare:
            for form in options.forms:
                print(file_of(options.shape, form, work, options.llama))
            return
        ceiling = measure_ceiling(torch.Generator().manual_seed(0))
        print(f"{options.shape} | reading {ceiling.read / 1e9:.1f} GB/s", flush=True)
        peer = _peer(options, weights)
        if peer is not None:
            stack.enter_context(closing(peer))
            any_prompt = Question(options.shape, "weights", 64, is_prefill=True)
            check_same_logits(Ours.of(weights, "weights", [any_prompt]), peer, any_prompt)
        for form in options.forms:
            asked = [one for one in _questions(options) if one.form == form]
            sides: dict[str, Side] = {"moesaic": Ours.of(weights, form, asked)}
            if peer is not None and form in _BFLOAT16:
                sides["transformers"] = peer
            if options.llama is not None:
                file = file_of(options.shape, form, work, options.llama)
                sides["llama.cpp"] = Llama(options.llama, file)
            for question in asked:
                found = in_turns(sides, question, options.rounds, ceiling)
                print(_summary(question, found), flush=True)
                what = "decode-forms-quick" if options.quick else "decode-forms"
                write_result(what, {question.name: found}, options.threads)


def _peer(options: argparse.Namespace, weights: Path) -> Peer | None:
    """transformers in its best setting, found anew."""
    if options.transformers is None or not _BFLOAT16 & {*options.forms}:
        return None
    tried = Question(options.shape, "weights", 64)
    settings = peer_settings(tried.case, options.compile, quick=False)
    settings = [one for one in settings if options.transformers in one.name]
    return Peer(weights, best_peer(weights, tried, settings))


def _questions(options: argparse.Namespace) -> Iterator[Question]:
    for form in options.forms:
        for context in options.contexts:
            yield Question(options.shape, form, context)
        for prompt in options.prompts:
            yield Question(options.shape, form, prompt, is_prefill=True)
        for sequences in options.batches:
            yield Question(options.shape, form, CONTEXT_OF_BATCH, sequences)


def in_turns(
    sides: Mapping[str, Side], question: Question, rounds: int, ceiling: Ceiling
) -> dict[str, Any]:
    """Median tokens per second of each side, and ours over every other's in the same round."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    others = []
    for _ in range(rounds):
        for name, side in sides.items():
            with watching_others() as seen:
                speeds[name].append(side.tokens_per_s(question))
            if name == "moesaic":
                others.append(seen.others or 0.0)
    found: dict[str, Any] = {name: median(each) for name, each in speeds.items()}
    for name in list(sides)[1:]:
        ratios = [
            ours / theirs for ours, theirs in zip(speeds["moesaic"], speeds[name], strict=True)
        ]
        found[f"over {name}"] = {"ratio": median(ratios), "ratios": ratios}
    if not question.is_prefill and question.sequences == 1:
        found["share_of_reading_bound"] = found["moesaic"] * question.bytes_read / ceiling.read
    peer = sides.get("transformers")
    if isinstance(peer, Peer):
        found["transformers_setting"] = peer.setting.name
    return {**found, "others": max(others), "read_gb_per_s": ceiling.read / 1e9}


def _summary(question: Question, found: dict[str, Any]) -> str:
    parts = [f"{question.name:<32} {found['moesaic']:8.1f} tok/s"]
    if "share_of_reading_bound" in found:
        parts.append(f"{found['share_of_reading_bound']:.0%} of the bound by reading")
    for name in ("transformers", "llama.cpp"):
        if name in found:
            over = found[f"over {name}"]
            spread = f"{min(over['ratios']):.2f} to {max(over['ratios']):.2f}"
            parts.append(f"{name} {found[name]:.1f}: ratio {over['ratio']:.2f} ({spread})")
    if found["others"] > DISTURBED:
        parts.append("disturbed by other processes")
    return " | ".join(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="8-layers")
    add("--forms", nargs="+", choices=get_args(Form), default=[*get_args(Form)])
    add("--contexts", nargs="*", type=int, default=[0, 2048, 8192], help="of one sequence")
    add("--prompts", nargs="*", type=int, default=[1024], help="lengths for prefill")
    add("--batches", nargs="*", type=int, default=[8, 32], help="sequences decoded at once")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=hardware()["cores"])
    add("--llama", type=Path, metavar="DIR", help="the folder of llama.cpp's programs")
    add("--transformers", nargs="?", const="", metavar="TEXT", help=_TRANSFORMERS)
    add("--compile", action="store_true", help="transformers also compiled")
    add("--work", type=Path, metavar="DIR", help="where weights and files are made and kept")
    add("--prepare", action="store_true", help="only make the weights and llama.cpp's files")
    add("--quick", action="store_true", help="one round, short contexts")
    options = parser.parse_args()
    if options.quick:
        options.contexts, options.prompts, options.batches = [0, 512], [256], [8]
        options.rounds = 1
    if options.prepare and (options.llama is None or options.work is None):
        parser.error("--prepare needs --llama and --work")
    return options


if __name__ == "__main__":
    main()
