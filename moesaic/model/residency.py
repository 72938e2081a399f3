"""`Residency`: which experts a model holds, and which of them tokens may be sent to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Residency:
    """Per layer the resident and the allowed experts. Layers left out hold and allow all."""

    resident: Mapping[int, tuple[int, ...]]
    """Layer → experts held here, ascending; the rest are parked."""
    allowed: Mapping[int, tuple[int, ...]]
    """Layer → experts the router may choose; a subset of the resident ones."""

    @classmethod
    def only(cls, experts: Mapping[int, Sequence[int]]) -> "Residency":
        """Hold and allow just these experts, by layer."""
        chosen = {layer: tuple(sorted(ids)) for layer, ids in experts.items()}
        return cls(chosen, chosen)

    def resident_in(self, config: ModelConfig, layer: int) -> tuple[int, ...]:
        """Experts held in a layer, ascending."""
        return self.resident.get(layer, tuple(range(config.experts)))

    def allowed_in(self, config: ModelConfig, layer: int) -> tuple[int, ...]:
        """Experts the router of a layer may choose, ascending."""
        return self.allowed.get(layer, self.resident_in(config, layer))

    def check(self, config: ModelConfig) -> None:
        """Hold this against a model.

        Raises:
            ConfigError: for a layer without experts, an id out of range or named twice, an allowed
                expert that is not resident, or fewer allowed than each token needs.
        """
        for layer in {*self.resident, *self.allowed}:
            with_experts = _layers_with_experts(config)
            if layer not in with_experts:
                raise ConfigError(
                    f"layer {layer} has no experts; the layers with experts are "
                    f"{list(with_experts) or 'none'}"
                )
            self._check_layer(config, layer)

    def _check_layer(self, config: ModelConfig, layer: int) -> None:
        resident, allowed = self.resident_in(config, layer), self.allowed_in(config, layer)
        for name, ids in (("resident", resident), ("allowed", allowed)):
            if list(ids) != sorted(set(ids)):
                raise ConfigError(
                    f"{name} experts of layer {layer}: {list(ids)} must be ascending and each once"
                )
            if ids and not 0 <= ids[0] <= ids[-1] < config.experts:
                raise ConfigError(
                    f"{name} experts of layer {layer}: {list(ids)} are not all in 0 to "
                    f"{config.experts - 1} (n_routed_experts={config.experts})"
                )
        parked = sorted(set(allowed) - set(resident))
        if parked:
            raise ConfigError(
                f"layer {layer}: experts {parked} are allowed but not resident; make them resident "
                "or do not allow them"
            )
        needed = config.num_experts_per_tok or 0
        if len(allowed) < needed:
            raise ConfigError(
                f"layer {layer}: {len(allowed)} experts are allowed, each token needs "
                f"num_experts_per_tok={needed}; allow at least that many"
            )


def _layers_with_experts(config: ModelConfig) -> tuple[int, ...]:
    depth = config.num_hidden_layers + config.num_nextn_predict_layers
    return tuple(layer for layer in range(depth) if config.has_experts(layer))


ALL_RESIDENT = Residency({}, {})
"""Every expert held and allowed."""
