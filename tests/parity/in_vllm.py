"""Log-probabilities of vLLM, as a program that takes prompts on its standard input:

    in_vllm.py FOLDER DTYPE OVERRIDES OUT

vLLM reads the folder, chooses how each layer is stored and loads the weights. The products of its
build for CPUs with integers and FP8 blocks ask for some CPUs' tiles; here what it loaded is made
floats instead.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.model_executor.kernels import linear  # pyright: ignore[reportMissingImports]
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (  # pyright: ignore[reportMissingImports]
    MPLinearKernel,
)
from vllm.model_executor.kernels.linear.scaled_mm.cpu import (  # pyright: ignore[reportMissingImports]
    CPUFp8BlockScaledMMKernel,
)
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import (  # pyright: ignore[reportMissingImports]
    CPUExpertsInt4,
)
from vllm.model_executor.layers.fused_moe.oracle.fp8 import (  # pyright: ignore[reportMissingImports]
    Fp8MoeBackend,
)
from vllm.model_executor.layers.quantization import fp8  # pyright: ignore[reportMissingImports]
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (  # pyright: ignore[reportMissingImports]
    compressed_tensors_moe_wna16 as wna16,
)
from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

BLOCK = 128


def of_words(words: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Floats of codes that lie in words, lowest bits first."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    codes = ((words[..., None] >> shifts) & (2**bits - 1)).flatten(-2) - 2 ** (bits - 1)
    grouped = codes.unflatten(-1, (scales.shape[-1], -1))
    return (grouped * scales.float()[..., None]).flatten(-2)


def of_blocks(weight: Tensor, scales: Tensor) -> Tensor:
    """Floats of FP8 blocks."""
    spread = scales.float().repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return weight.float() * spread[..., : weight.shape[-2], : weight.shape[-1]]


class Words(MPLinearKernel):
    """Products with packed integers."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        words, scales, _ = self._get_weight_params(layer)
        layer.floats = of_words(words.data, scales.data, self.config.weight_type.size_bits)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x.float(), layer.floats, bias).to(x.dtype)


class Blocks(CPUFp8BlockScaledMMKernel):
    """Products with FP8 blocks."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, None]:
        return True, None

    @classmethod
    def can_implement(cls, config: Any) -> tuple[bool, None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        loaded = self._get_layer_params(layer)
        layer.floats = of_blocks(loaded.weight.data, loaded.block_scale.data)

    def apply_weights(
        self, layer: Any, x: Tensor, bias: Tensor | None = None, **options: Any
    ) -> Tensor:
        return F.linear(x.float(), layer.floats, bias).to(x.dtype)


def experts_of_words(self: Any, layer: Any) -> None:
    """What is done once all experts of a layer are loaded."""
    self.floats = (
        of_words(layer.w13_weight_packed.data, layer.w13_weight_scale.data, self.num_bits),
        of_words(layer.w2_weight_packed.data, layer.w2_weight_scale.data, self.num_bits),
    )


def experts_of_blocks(self: Any, layer: Any) -> None:
    """The same for FP8 blocks."""
    self.floats = (
        of_blocks(layer.w13_weight.data, layer.w13_weight_scale_inv.data),
        of_blocks(layer.w2_weight.data, layer.w2_weight_scale_inv.data),
    )


def apply_experts(
    self: Any, layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, **shared: Any
) -> Tensor:
    """What chosen experts give for every token."""
    into, out = self.floats
    total = torch.zeros(x.shape)
    for expert in topk_ids.unique().tolist():
        rows, slots = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (x[rows].float() @ into[expert].T).chunk(2, -1)
        given = (F.silu(gate) * up) @ out[expert].T
        total.index_add_(0, rows, given * topk_weights[rows, slots, None].float())
    return total.to(x.dtype)


def use_floats() -> None:
    """Compute with floats of what was loaded."""
    linear._POSSIBLE_KERNELS[current_platform._enum] = [Words]
    linear._POSSIBLE_FP8_BLOCK_KERNELS[current_platform._enum] = [Blocks]
    packed, blocks = wna16.CompressedTensorsWNA16MoEMethod, fp8.Fp8MoEMethod
    wna16.select_wna16_moe_backend = lambda **_: (wna16.WNA16MoEBackend.CPU, CPUExpertsInt4)
    fp8.select_fp8_moe_backend = lambda **_: (Fp8MoeBackend.CPU, CPUExpertsInt4)
    packed.process_weights_after_loading = experts_of_words
    blocks.process_weights_after_loading = experts_of_blocks
    packed.apply = blocks.apply = apply_experts


def main(folder: str, dtype: str, overrides: str, out: str) -> None:
    """Write prompts with what follows them, and log-probabilities of all after the first token."""
    if current_platform.is_cpu():
        use_floats()
    prompts = json.load(sys.stdin)
    engine = LLM(
        folder,
        dtype=dtype,
        enforce_eager=True,
        skip_tokenizer_init=True,
        hf_overrides=json.loads(overrides),
        max_model_len=128,
        gpu_memory_utilization=0.05,
    )
    settings = SamplingParams(
        temperature=0,
        max_tokens=16,
        logprobs=0,
        prompt_logprobs=0,
        ignore_eos=True,
        detokenize=False,
    )
    told = []
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    for prompt, answer in zip(prompts, engine.generate(asked, settings), strict=True):
        [given] = answer.outputs
        ids = [*prompt, *given.token_ids]
        tables = [*answer.prompt_logprobs[1:], *given.logprobs]
        told.append((ids, [table[i].logprob for i, table in zip(ids[1:], tables, strict=True)]))
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
