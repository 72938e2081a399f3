"""How near the machine's matmul ceiling do the routed experts come, forward and backward?

One layer's experts alone: this package's layouts, the reference loop, and transformers' forms, on
the same tokens, experts and weights, in turns.

Letters: T tokens, D hidden, E experts, K experts per token.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

from benchmarks.measure.cases import Precision
from benchmarks.measure.machine import (
    Ceiling,
    measure_ceiling,
    typical_seconds,
    watching_others,
)
from benchmarks.measure.results import write_result
from moesaic.balance.stats import max_violation
from moesaic.config.presets import get_preset
from moesaic.kernels import reference
from moesaic.kernels.grouped import arranged, experts
from moesaic.kernels.layout import SortedLayout, TieredLayout
from moesaic.runlog import hardware

SIZES = {name: f"{name}-v2" for name in ("tiny", "small", "mid")} | {"v2-lite": "deepseek-v2-lite"}
LOADS = {"even": 0.0, "skewed": 1.0}
"""Standard deviation of the experts' popularity, beside the noise that a token's choice has."""

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """The experts of one layer, and tokens that have chosen among them."""

    x_TD: Tensor
    ids_TK: Tensor
    weights_TK: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, size: str, tokens: int, skew: float, precision: Precision) -> "Layer":
        """Fresh weights and random tokens of a preset's shape."""
        config = get_preset(SIZES[size])
        assert config.moe_intermediate_size
        assert config.num_experts_per_tok
        width, inner, n_experts = config.hidden_size, config.moe_intermediate_size, config.experts
        generator = torch.Generator().manual_seed(0)
        normal = partial(torch.randn, generator=generator)
        noise_TE = -torch.rand(tokens, n_experts, generator=generator).log_().neg_().log_()
        popular_TE = noise_TE + skew * normal(n_experts)
        top = popular_TE.softmax(-1).topk(config.num_experts_per_tok)
        weight_dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        gate_up = normal(n_experts, 2 * inner, width).mul_(width**-0.5).to(weight_dtype)
        down = normal(n_experts, width, inner).mul_(inner**-0.5).to(weight_dtype)
        x_TD = normal(tokens, width).to(dtype)
        parts = (x_TD, top.values, gate_up, down)
        x_TD, weights_TK, gate_up, down = (part.requires_grad_() for part in parts)
        return cls(x_TD, top.indices, weights_TK, gate_up, down)

    @property
    def flops(self) -> float:
        """Operations of the forward pass and of all its gradients."""
        return 3 * 2 * self.ids_TK.numel() * (self.gate_up[0].numel() + self.down[0].numel())

    @property
    def violation(self) -> float:
        """MaxVio of the load."""
        return max_violation(torch.bincount(self.ids_TK.flatten(), minlength=len(self.down)))

    def forward(self, form: Form) -> Tensor:
        """The output of one form."""
        return form(self.x_TD, self.ids_TK, self.weights_TK, self.gate_up, self.down)

    def step(self, form: Form) -> None:
        """Forward and backward."""
        self.forward(form).sum().backward()
        for part in (self.x_TD, self.weights_TK, self.gate_up, self.down):
            part.grad = None


def forms(layer: Layer, precision: Precision) -> dict[str, Form]:
    """Everything that can compute the layer, by name; the first is what moesaic uses."""
    found: dict[str, Form] = {
        "moesaic": experts,
        "moesaic tiered": _tiered,
        "reference loop": reference.experts,
    }
    width, inner = layer.down.shape[1:]
    element = layer.x_TD.element_size()
    if width * element % 16 == 0 and inner * element % 16 == 0:
        found["moesaic sorted"] = _sorted
    if precision != "mixed":
        for kind in ("grouped_mm", "eager"):
            found[f"transformers {kind}"] = _theirs(layer, kind)
    return found


def _tiered(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    layout = TieredLayout.of(ids_TK, len(down), 4 * down[0].numel())
    return arranged(x_TD, weights_TK, gate_up, down, layout)


def _sorted(
    x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    found = SortedLayout.of(ids_TK, len(down))
    layout = _GroupedMatmul(found.token_of_row, found.row_TK, found.ends_e)
    return arranged(x_TD, weights_TK, gate_up, down, layout)


class _GroupedMatmul(SortedLayout):
    """The framework's products also where compiled ones are faster."""

    def matmul(self, rows: Tensor, matrices: Tensor) -> Tensor:
        return F.grouped_mm(rows, matrices.to(rows.dtype), offs=self.ends_e)

    def outer(self, left: Tensor, right: Tensor, n_experts: int, dtype: torch.dtype) -> Tensor:
        return F.grouped_mm(left.t(), right, offs=self.ends_e[:n_experts]).to(dtype)


def _theirs(layer: Layer, kind: str) -> Form:
    """Their module with our weights."""
    n_experts, width, inner = layer.down.shape
    config = DeepseekV3Config(
        hidden_size=width, moe_intermediate_size=inner, n_routed_experts=n_experts
    )
    config._experts_implementation = kind
    with torch.device("meta"):
        module = DeepseekV3Experts(config)
    module.gate_up_proj = torch.nn.Parameter(layer.gate_up.detach())
    module.down_proj = torch.nn.Parameter(layer.down.detach())

    def form(
        x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        module.zero_grad(set_to_none=True)
        return module(x_TD, ids_TK, weights_TK.to(x_TD.dtype))

    return form


def measure(layer: Layer, precision: Precision, ceiling: Ceiling, rounds: int) -> dict[str, Any]:
    """Seconds and share of the ceiling of every form, measured in turns."""
    found = forms(layer, precision)
    expected = layer.forward(reference.experts).detach()
    scale = float(expected.float().abs().max())
    for name, form in found.items():
        off = float((layer.forward(form).detach() - expected).float().abs().max())
        if off > (1e-4 if precision == "float32" else 0.05) * scale:
            raise ArithmeticError(
                f"{name} is off by {off:.3g} where the largest value is {scale:.3g}"
            )
    seconds: dict[str, list[float]] = {name: [] for name in found}
    with watching_others() as seen:
        for _ in range(rounds):
            for name, form in found.items():
                step = partial(layer.step, form)
                seconds[name].append(typical_seconds(step, repeats=3, at_least_s=0.2))
    speeds = {name: layer.flops / median(times) for name, times in seconds.items()}
    return {
        "tokens": len(layer.x_TD),
        "max_violation": round(layer.violation, 2),
        "others": seen.others,
        "ceiling_gflops": round(ceiling.flops(precision) / 1e9, 1),
        "gflops": {name: round(speed / 1e9, 1) for name, speed in speeds.items()},
        "share_of_ceiling": {
            name: round(speed / ceiling.flops(precision), 3) for name, speed in speeds.items()
        },
    }


def main() -> None:
    """Measure the layers that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="tiny and small, few repetitions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = [size for size in options.sizes if not options.quick or size in ("tiny", "small")]
    ceiling = measure_ceiling(torch.Generator().manual_seed(0))
    precisions: tuple[Precision, ...] = ("float32", "mixed", "bfloat16")
    cases = {}
    for size, load, precision in product(sizes, LOADS, precisions):
        layer = Layer.of(size, options.tokens, LOADS[load], precision)
        name = f"{size} {load} {precision}"
        cases[name] = measure(layer, precision, ceiling, rounds=2 if options.quick else 7)
        shares = cases[name]["share_of_ceiling"].items()
        print(f"{name:<24}", *(f"{form} {share:.0%}" for form, share in shares), sep=" | ")
    print(write_result("experts-quick" if options.quick else "experts", cases, options.threads))


if __name__ == "__main__":
    main()
