"""Put low-rank adapters beside the weights of a built model, and find them there again."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from moesaic.errors import ConfigError
from moesaic.kernels.adapted import LowRank
from moesaic.model.experts import Experts
from moesaic.model.lora import Adapter, LoraExperts, LoraLinear
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import TensorSpec

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The weights of an expert."""

MakeFactors = Callable[[TensorSpec], LowRank]
"""Gives both factors of the adapter for a weight, on the CPU."""


def fresh_factors(rank: int, generator: torch.Generator) -> MakeFactors:
    """A uniform within one over the root of its width, B zero: the model computes what it did.

    Args:
        rank: rows of A, columns of B.
        generator: draws A, on the CPU: the same values whatever device they go to.

    Source: LoRA (arXiv 2106.09685) section 4.1 for B; A as PEFT draws it
        (``reset_lora_parameters``).
    """

    def make(spec: TensorSpec) -> LowRank:
        rows, columns = spec.shape
        bound = columns**-0.5
        a = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        return LowRank(a, torch.zeros(rows, rank))

    return make


def adapt_(
    model: Transformer,
    adapted: Iterable[TensorSpec],
    make: MakeFactors,
    scale: float,
    dtype: torch.dtype,
) -> None:
    """Freeze a model and put adapters beside some of its weights; they alone are trained.

    Args:
        model: with all its weights and frozen experts in place.
        adapted: the weights.
        make: gives the factors.
        scale: factor on their product.
        dtype: of the factors, which are cast to that of the activations on use.

    Raises:
        ConfigError: if a weight has an adapter already, or is of an expert that is not held or of
            which other weights have none.
    """
    model.requires_grad_(False)
    attach = _Attach(model, make, scale, dtype)
    of_layer: dict[int, list[TensorSpec]] = {}
    for spec in adapted:
        if spec.expert is None or spec.layer is None:
            attach.beside_linear(spec)
        else:
            of_layer.setdefault(spec.layer, []).append(spec)
    for layer, specs in of_layer.items():
        attach.beside_experts(layer, specs)


def adapters_of(model: Transformer) -> dict[str, LowRank]:
    """The factors of every adapter in a model, as views, by the published name of the weight."""
    return dict(_adapters_of(model))


def _adapters_of(model: Transformer) -> Iterator[tuple[str, LowRank]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.weight", module.adapter.factors
        elif isinstance(module, Experts) and module.lora is not None:
            for projection in PROJECTIONS:
                stacks = getattr(module.lora, projection).factors
                for place, expert in enumerate(module.lora.ids):
                    factors = LowRank(*(stack[place] for stack in stacks))
                    yield f"{name}.{expert}.{projection}.weight", factors


class _Attach:
    """Puts adapters into one model."""

    def __init__(
        self, model: Transformer, make: MakeFactors, scale: float, dtype: torch.dtype
    ) -> None:
        self.model, self.make, self.scale, self.dtype = model, make, scale, dtype
        self.device = model.model.norm.weight.device

    def beside_linear(self, spec: TensorSpec) -> None:
        name = spec.name.removesuffix(".weight")
        base = self.model.get_submodule(name)
        if isinstance(base, LoraLinear):
            raise _twice(name)
        adapter = self._adapter(*self.make(spec))
        self.model.set_submodule(name, LoraLinear(base, adapter, self.scale))

    def beside_experts(self, layer: int, specs: Sequence[TensorSpec]) -> None:
        experts = self.model.moe_layers()[layer].experts
        if experts.lora is not None:
            raise _twice(f"layer {layer}")
        ids = tuple(sorted({spec.expert for spec in specs if spec.expert is not None}))
        slots = torch.tensor(_slots(experts, layer, ids), device=self.device)
        gate, up, down = (self._stack(name, ids, specs) for name in PROJECTIONS)
        experts.lora = LoraExperts(ids, slots, (gate, up, down), self.scale)

    def _stack(self, name: str, ids: Sequence[int], specs: Sequence[TensorSpec]) -> Adapter:
        """Adapters of one projection, in the order of the experts."""
        found = {spec.expert: spec for spec in specs if spec.name.endswith(f"{name}.weight")}
        for expert in ids:
            if expert not in found:
                raise ConfigError(
                    f"expert {expert} of layer {specs[0].layer} has adapters but none for {name}; "
                    f"give it all of {', '.join(PROJECTIONS)}"
                )
        pairs = [self.make(found[expert]) for expert in ids]
        return self._adapter(*(torch.stack(part) for part in zip(*pairs, strict=True)))

    def _adapter(self, a: torch.Tensor, b: torch.Tensor) -> Adapter:
        return Adapter(*(part.to(self.device, self.dtype) for part in (a, b)))


def _slots(experts: Experts, layer: int, ids: Sequence[int]) -> list[int]:
    """Where each expert lies among those that are held."""
    held = (*experts.stacked, *experts.apart)
    parked = [expert for expert in ids if expert not in held]
    if parked:
        raise ConfigError(
            f"layer {layer}: experts {parked} have adapters but are not held; load the model with "
            "them resident"
        )
    return [held.index(expert) for expert in ids]


def _twice(where: str) -> ConfigError:
    return ConfigError(
        f"{where} has adapters already; merge them into a checkpoint, or load the model again"
    )
