"""How fast is a token decoded on a CPU, at several contexts and in several forms of the weights?

With --llama-bench and GGUF files of a model of the same shape, llama.cpp decodes in turns with us.
"""

import argparse
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks.measure.machine import measure_ceiling
from benchmarks.measure.results import write_result
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.infer.blocks import BLOCK, BlockPool, Held
from moesaic.infer.decoder import CpuDecoder, Fed
from moesaic.kernels.groupwise import bits_per_weight
from moesaic.kernels.native.pack import Form
from moesaic.model.build import build_model
from moesaic.planner.memory import cache_values
from moesaic.planner.params import params
from moesaic.runlog import hardware

_COMMON = {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "max_position_embeddings": 16384,
    "rope_scaling": None,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8-layers": {
        **_COMMON,
        **{"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 8192},
        **{"intermediate_size": 2736, "moe_intermediate_size": 352, "kv_lora_rank": 128},
        **{"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    },
    "1.7b": {
        **_COMMON,
        **{"hidden_size": 1024, "num_hidden_layers": 12, "vocab_size": 32768},
        **{"intermediate_size": 5472, "moe_intermediate_size": 704, "kv_lora_rank": 512},
        **{"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
    },
}
"""Of 270 million and of 1.7 billion parameters, in V2-Lite's proportions."""
_TOKENS = 32
_BITS: dict[Form, float] = {"weights": 16, "int8": bits_per_weight(8), "int4": bits_per_weight(4)}


@dataclass(frozen=True, slots=True)
class Ours:
    """A model in one form, ready to decode."""

    decoder: CpuDecoder

    def tokens_per_s(self, context: int) -> float:
        """After a context of positions that hold random numbers."""
        pool = self.decoder.pool
        held = Held(pool)
        held.make_room(context + 2 * _TOKENS)
        held.length = context
        self._decode(held)
        start = time.perf_counter()
        self._decode(held)
        seconds = time.perf_counter() - start
        held.release()
        return _TOKENS / seconds

    def _decode(self, held: Held) -> None:
        token = 5
        for _ in range(_TOKENS):
            token = int(self.decoder.feed([Fed(held, (token,))])[0].logits_TV.argmax())


@dataclass(frozen=True, slots=True)
class Llama:
    """llama.cpp's own benchmark, on a file."""

    program: Path
    file: Path

    def tokens_per_s(self, context: int) -> float:
        """The same, as it measures it."""
        command = [self.program, "-m", self.file, "-p", 0, "-n", _TOKENS, "-d", context, "-r", 2]
        command += ["-t", torch.get_num_threads(), "-o", "json"]
        told = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        return float(json.loads(told.stdout)[-1]["avg_ts"])


def main() -> None:
    """Measure every form that was asked for."""
    options = _options()
    torch.set_num_threads(options.threads)
    config = get_preset("mid-v2").changed(**SHAPES[options.shape], initializer_range=0.02)
    ceiling = measure_ceiling(torch.Generator().manual_seed(0))
    model = build_model(config, "bfloat16", seed=0).requires_grad_(False)
    files = dict(pair.split("=", 1) for pair in options.gguf)
    cases = {}
    for form in options.forms:
        pool = BlockPool(config, -(-(max(options.contexts) + 2 * _TOKENS) // BLOCK))
        for layer in pool.layers:
            layer.normal_(generator=torch.Generator().manual_seed(1))
        sides: dict[str, Ours | Llama] = {"moesaic": Ours(CpuDecoder(model, pool, form))}
        if form in files:
            sides["llama.cpp"] = Llama(options.llama_bench, Path(files[form]))
        for context in options.contexts:
            found = _in_turns(sides, context, 1 if options.quick else options.rounds)
            bound = ceiling.read / _bytes_read(config, context, form)
            found["share_of_reading_bound"] = found["moesaic"] / bound
            cases[f"{options.shape} {form} after {context}"] = found
            print(_summary(form, context, found), flush=True)
    what = "decode-forms-quick" if options.quick else "decode-forms"
    print(write_result(what, cases, options.threads))


def _in_turns(sides: dict[str, Ours | Llama], context: int, rounds: int) -> dict[str, Any]:
    """Median tokens per second of each side, and of the ratios of the rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            speeds[name].append(side.tokens_per_s(context))
    found: dict[str, Any] = {name: median(each) for name, each in speeds.items()}
    if len(sides) > 1:
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
        found |= {"ratios": ratios, "ratio": median(ratios)}
    return found


def _bytes_read(config: ModelConfig, context: int, form: Form) -> float:
    """Bytes of weights and cache that one token needs; the cache is in bfloat16."""
    weights = params(config, train_experts=None).activated * _BITS[form] / 8
    return weights + 2 * context * config.num_hidden_layers * cache_values(config)


def _summary(form: str, context: int, found: dict[str, Any]) -> str:
    line = f"{form:>8} after {context:>5}: {found['moesaic']:7.1f} tok/s"
    line += f" | {found['share_of_reading_bound']:.0%} of the bound by reading"
    if "ratio" not in found:
        return line
    spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
    return f"{line} | llama.cpp {found['llama.cpp']:7.1f} | ratio {found['ratio']:.2f} ({spread})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8-layers")
    parser.add_argument("--forms", nargs="+", choices=get_args(Form), default=[*get_args(Form)])
    parser.add_argument("--contexts", nargs="+", type=int, default=[0, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program of that name")
    parser.add_argument(
        "--gguf", nargs="*", default=[], metavar="FORM=FILE", help="what llama.cpp runs for a form"
    )
    parser.add_argument("--quick", action="store_true", help="one round, short contexts")
    options = parser.parse_args()
    if options.quick:
        options.contexts = [0, 512]
    if options.gguf and options.llama_bench is None:
        parser.error("--gguf needs --llama-bench")
    return options


if __name__ == "__main__":
    main()
