"""Which weights of a model have low-rank adapters, and how many parameters those are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moesaic.config.lora import LoraConfig, Target
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.planner.inventory import Role, TensorSpec, tensors

ADAPTED_ROLES: dict[Role, Target] = {
    "attention": "attention",
    "shared": "shared_experts",
    "routed": "experts",
    "dense": "dense",
}
"""Which weights can have adapters, and what takes them."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of a slice: what it trains where it trains no weights."""

    lora: LoraConfig
    by_layer: Mapping[int, int]
    """Layer → parameters."""
    linears: Mapping[int, int]
    """Layer → linear layers with adapters, those of routed experts left out."""
    roles: frozenset[Role]
    """Parts of the model that have some."""

    @classmethod
    def of(cls, config: ModelConfig, lora: LoraConfig | None, experts: int) -> "Adapters":
        """Adapters of some experts of every layer, and of the other targets.

        Args:
            config: the model.
            lora: what is adapted; None takes the defaults, as far as the model has such parts.
            experts: how many in each layer.

        Raises:
            ConfigError: see `adapted_tensors`.
        """
        lora = lora or _usual(config)
        chosen = dict.fromkeys(config.moe_layers, range(experts))
        adapted = [
            spec
            for spec in adapted_tensors(config, lora, chosen)
            if spec.layer is not None and spec.layer < config.num_hidden_layers
        ]
        by_layer: Counter[int] = Counter()
        linears: Counter[int] = Counter()
        for spec in adapted:
            by_layer[spec.layer or 0] += adapter_size([spec], lora.rank)
            linears[spec.layer or 0] += spec.expert is None
        return cls(lora, by_layer, linears, frozenset(spec.role for spec in adapted))

    @property
    def size(self) -> int:
        """Parameters of all."""
        return sum(self.by_layer.values())

    def are_on(self, role: Role) -> bool:
        """Whether a part of the model has some."""
        return role in self.roles

    def narrow_in(self, layer: int) -> int:
        """Values of one token between both factors, of all linear layers in a layer."""
        return self.lora.rank * self.linears.get(layer, 0)


def adapted_tensors(
    config: ModelConfig, lora: LoraConfig, experts: Mapping[int, Sequence[int]]
) -> tuple[TensorSpec, ...]:
    """The weights that have adapters, in the published order.

    Args:
        config: the model.
        lora: which parts of it.
        experts: layer → selected routed experts.

    Raises:
        ConfigError: if a target is not in the model, or the rank is higher than that of a weight.
    """
    found: list[TensorSpec] = []
    missing: set[str] = set(lora.targets)
    for spec in tensors(config):
        names = {ADAPTED_ROLES.get(spec.role), spec.name.split(".")[-2]} & set(lora.targets)
        if not names or (spec.role == "routed" and not _is_selected(spec, experts)):
            continue
        if lora.rank > min(spec.shape):
            raise ConfigError(
                f"lora.rank={lora.rank} is more than {spec.name} can have, which is "
                f"{list(spec.shape)}; lower it to at most {min(spec.shape)}"
            )
        missing -= names
        found.append(spec)
    for target in sorted(missing):
        raise ConfigError(f"lora.targets names {target!r}, {_why_missing(config, target)}")
    return tuple(found)


def adapter_size(adapted: Iterable[TensorSpec], rank: int) -> int:
    """Trained parameters: A has a row of the weight's width per rank, B a column of its height.

    Source: LoRA (arXiv 2106.09685) section 4.2.
    """
    return sum(rank * (rows + columns) for rows, columns in (spec.shape for spec in adapted))


def _usual(config: ModelConfig) -> LoraConfig:
    """The default targets that a model has."""
    roles = {spec.role for spec in tensors(config)}
    there = {target for role, target in ADAPTED_ROLES.items() if role in roles}
    usual = LoraConfig()
    return usual.changed(targets=tuple(target for target in usual.targets if target in there))


def _is_selected(spec: TensorSpec, experts: Mapping[int, Sequence[int]]) -> bool:
    return spec.layer is not None and spec.expert in experts.get(spec.layer, ())


def _why_missing(config: ModelConfig, target: str) -> str:
    if target == "experts" and config.experts:
        return "and no experts are selected; select some, or remove it"
    attention = (spec.name.split(".")[-2] for spec in tensors(config) if spec.role == "attention")
    there = [*dict.fromkeys(attention), "attention"]
    roles = {spec.role for spec in tensors(config)}
    there += [name for role, name in ADAPTED_ROLES.items() if role in roles and name != "attention"]
    return f"which this model has not; it has {', '.join(there)}"
