"""What do drafts of the prediction module gain, where calls bound a pass and where reading does?

A small V3 model with a prediction module is trained on the shipped corpus, or a folder is given.
Texts are written one at a time with drafts and without, in turns: by the form that makes one
framework call after another, whose time hardly depends on the tokens in a pass, and by the
compiled form, which does little but read and multiply.
"""

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.results import write_result
from moesaic.config.infer import GenerateConfig
from moesaic.config.load import read_run_file
from moesaic.config.train import TrainConfig
from moesaic.data import corpus
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Decoder, Fed, TorchDecoder, build_decoder
from moesaic.infer.generate import pool_for
from moesaic.infer.sample import sample
from moesaic.infer.speculative import Counts, Speculation
from moesaic.model.build import load_model
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer
from moesaic.planner.params import params
from moesaic.runlog import hardware
from moesaic.train.loop import train

FORMS = ("call by call", "compiled")
_BEGINNING = 48
"""Tokens of each prompt."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to write."""

    prompts: int
    tokens: int
    """Of each text."""
    rounds: int
    train_steps: int | None
    """None leaves the number of the recipe."""


FULL = Effort(prompts=8, tokens=96, rounds=5, train_steps=None)
QUICK = Effort(prompts=2, tokens=24, rounds=2, train_steps=4)


def decoder_of(form: str, model: Transformer, room: int) -> Decoder:
    """A decoder with room for one text."""
    pool = pool_for(model, [room])
    return TorchDecoder(model, pool) if form == "call by call" else build_decoder(model, pool)


def write_plainly(decoder: Decoder, prompt: Sequence[int], config: GenerateConfig) -> float:
    """Seconds per token after the prompt, one token in a pass."""
    held = Held(decoder.pool)
    generator = torch.Generator().manual_seed(config.seed)
    [found] = decoder.feed([Fed(held, tuple(prompt))])
    start = time.perf_counter()
    for _ in range(config.max_new_tokens - 1):
        [token] = sample(found.logits_TV, config, [generator]).tolist()
        [found] = decoder.feed([Fed(held, (token,))])
    seconds = time.perf_counter() - start
    return seconds / (config.max_new_tokens - 1)


def write_with_drafts(
    decoder: Decoder, prompt: Sequence[int], config: GenerateConfig
) -> tuple[float, Counts]:
    """Seconds per token after the prompt, drafts included, and what these came to."""
    speculation = Speculation(decoder, [prompt], config, may_stop=False)
    passes = speculation.draw()
    next(passes)
    start = time.perf_counter()
    deque(passes, maxlen=0)
    seconds = time.perf_counter() - start
    [counts] = speculation.counts
    return seconds / counts.tokens, counts


def measure(
    model: Transformer, form: str, prompts: Tensor, temperature: float, effort: Effort
) -> dict[str, Any]:
    """Both ways in turns; a round writes every text both ways."""
    room = _BEGINNING + effort.tokens + 1
    gains, plain_s, counted = [], [], []
    for lap in range(effort.rounds + 1):
        config = GenerateConfig(
            max_new_tokens=effort.tokens, temperature=temperature, top_p=1.0, seed=lap
        )
        without, drafted = [], []
        for prompt in prompts.tolist():
            without.append(write_plainly(decoder_of(form, model, room), prompt, config))
            seconds, counts = write_with_drafts(decoder_of(form, model, room), prompt, config)
            drafted.append(seconds)
            counted.append(counts)
        if lap:  # the first round warms up
            gains.append(mean(without) / mean(drafted))
            plain_s.append(mean(without))
    passes, tokens = (sum(getattr(one, key) for one in counted) for key in ("passes", "tokens"))
    accepted, drafts = (sum(getattr(one, key) for one in counted) for key in ("accepted", "drafts"))
    return {
        "tokens_per_s_without": round(1 / median(plain_s), 1),
        "gain": round(median(gains), 3),
        "gains": [round(gain, 3) for gain in gains],
        "acceptance": round(accepted / max(1, drafts), 3),
        "tokens_per_pass": round(tokens / max(1, passes), 3),
    }


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


def trained(folder: Path, effort: Effort) -> Path:
    """The model of the demo's first run file, trained on the shipped corpus."""
    steps = [] if effort.train_steps is None else [f"steps={effort.train_steps}"]
    with as_file(files("moesaic.recipes") / "demo_base.toml") as path:
        config = read_run_file(TrainConfig, path, [f"folder={folder}", *steps])
    train(config)
    return folder / "model"


def beginnings(tokenizer: Tokenizer, n: int) -> Tensor:
    """Held-out beginnings of the corpus that the model was trained on, int64 [n, tokens]."""
    ids = [token for text in corpus.read("english", "held_out") for token in tokenizer.encode(text)]
    return torch.tensor(ids[: n * _BEGINNING]).view(n, _BEGINNING)


def compare(folder: Path, effort: Effort) -> dict[str, Any]:
    """Every form, greedy and drawn."""
    model = load_model(folder, "float32").requires_grad_(requires_grad=False)
    prompts = beginnings(Tokenizer.load(folder), effort.prompts)
    reads = read_by_two(model, prompts)
    print(f"two tokens in a pass read {reads:.2f} times the weights of one")
    cases: dict[str, Any] = {}
    for form in FORMS:
        for temperature in (0.0, 1.0):
            found = measure(model, form, prompts, temperature, effort)
            cases[f"{form}, temperature {temperature:g}"] = {
                **found,
                "read_by_two": round(reads, 3),
            }
            print(
                f"{form:<13} temperature {temperature:g}"
                f" | {found['tokens_per_s_without']:.0f} tok/s without"
                f" | {found['acceptance']:.0%} accepted | gain {found['gain']:.2f}"
                f" ({min(found['gains']):.2f} to {max(found['gains']):.2f})"
            )
    return cases


def main() -> None:
    """Train where no folder is given, measure, and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder with a prediction module")
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="hardly trained, few tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    effort = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        cases = compare(options.model or trained(Path(folder) / "run", effort), effort)
    name = "speculate-quick" if options.quick else "speculate"
    print(write_result(name, cases, options.threads))


if __name__ == "__main__":
    main()
