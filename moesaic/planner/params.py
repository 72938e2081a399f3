"""How many parameters a model has: by role, activated, and in the slice that one device trains."""

from collections import Counter
from dataclasses import dataclass
from math import comb
from pathlib import Path

from moesaic.config.esft import Hold, HoldLinears
from moesaic.config.model import ModelConfig
from moesaic.config.presets import find_model
from moesaic.errors import ConfigError
from moesaic.planner.adapters import Adapters
from moesaic.planner.inventory import Role, tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameter counts of one model, and of the slice of it that one device trains.

    Prediction modules are counted apart: no other figure includes them.
    """

    name: str
    """The preset or folder."""
    config: ModelConfig
    train_experts: int | None
    """Routed experts trained in each layer; None trains the whole model."""
    frozen_experts: int
    """Routed experts per layer that are kept beside them and not trained."""
    roles: dict[Role, int]
    """Parameters by role, summed over the decoder layers."""
    mtp: int
    """Parameters of the prediction modules, as stored: with their own embedding and head."""
    mtp_copies: int
    """The part of `mtp` that repeats the model's embedding and head."""
    hold: Hold = "weights"
    """How the frozen experts are held; with ``cpu`` and ``disk`` not on the device."""
    hold_linears: HoldLinears = "weights"
    """How a slice holds its frozen linear layers."""
    park_embedding: bool = False
    """Whether a slice keeps its embedding off the device."""
    adapters: Adapters | None = None
    """What a slice trains instead of its `train_experts`, which are frozen then."""

    @property
    def total(self) -> int:
        """Every parameter outside prediction modules."""
        return sum(self.roles.values())

    @property
    def total_with_mtp(self) -> int:
        """Every parameter of the published checkpoint."""
        return self.total + self.mtp

    @property
    def shared(self) -> int:
        """Parameters of the shared experts."""
        return self.roles.get("shared", 0)

    @property
    def routed(self) -> int:
        """Parameters of the routed experts."""
        return self.roles.get("routed", 0)

    @property
    def backbone(self) -> int:
        """Everything but shared and routed experts: attention, dense layers, gates, norms, ends."""
        return self.total - self.shared - self.routed

    @property
    def per_expert_slot(self) -> int:
        """Parameters that one more routed expert in every layer adds."""
        return self.routed // self.config.experts if self.config.experts else 0

    @property
    def activated(self) -> int:
        """Parameters one token is multiplied with: the head too, of the embedding only one row."""
        chosen = self.config.num_experts_per_tok or 0
        table = 0 if self.config.tie_word_embeddings else self.roles["embedding"]
        return self.backbone - table + self.shared + chosen * self.per_expert_slot

    @property
    def trained(self) -> int:
        """Parameters that get a gradient."""
        if self.train_experts is None:
            return self.total
        return self.stacked * self.per_expert_slot if self.adapters is None else self.adapters.size

    @property
    def stacked(self) -> int:
        """Routed experts of a layer whose weights are trained."""
        if self.train_experts is None:
            return self.config.experts
        return self.train_experts if self.adapters is None else 0

    @property
    def beside(self) -> int:
        """Routed experts of a layer that are there frozen, wherever they are."""
        if self.train_experts is None:
            return 0
        return self.frozen_experts + self.train_experts - self.stacked

    @property
    def is_slice(self) -> bool:
        """Whether a part of the model is trained and not the whole."""
        return self.train_experts is not None

    def trained_in(self, layer: int) -> int:
        """Parameters of one layer that get a gradient, norms left out."""
        depth, moe = self.config.num_hidden_layers, len(self.config.moe_layers)
        if self.adapters is not None:
            return self.adapters.by_layer.get(layer, 0)
        if self.train_experts is not None:
            return self.trained // moe if self.config.has_experts(layer) else 0
        attention = self.roles["attention"] // depth
        if not self.config.has_experts(layer):
            return attention + 3 * self.config.hidden_size * self.config.intermediate_size
        parts = self.roles.get("router", 0) + self.shared + self.routed
        return attention + parts // moe

    @property
    def lowest(self) -> int:
        """The first layer with anything that is trained: no gradient goes further down."""
        if self.adapters is not None:
            return min(self.adapters.by_layer)
        return self.config.moe_layers[0] if self.is_slice else 0

    def are_adapted(self, role: Role) -> bool:
        """Whether a part of the model has adapters."""
        return self.adapters is not None and self.adapters.are_on(role)

    def narrow_in(self, layer: int) -> int:
        """Values of one token between the factors of adapters of a layer's linear layers."""
        return 0 if self.adapters is None else self.adapters.narrow_in(layer)

    @property
    def frozen(self) -> int:
        """Parameters of the routed experts that are kept frozen, wherever they are."""
        return self.beside * self.per_expert_slot

    @property
    def is_streamed(self) -> bool:
        """Whether the frozen experts are brought to the device layer by layer."""
        return self.hold in ("cpu", "disk")

    @property
    def held(self) -> int:
        """Parameters on the device: backbone, shared, and the experts trained or kept frozen."""
        if self.train_experts is None:
            return self.total
        beside = 0 if self.is_streamed else self.frozen
        return self.backbone + self.shared + self.trained + beside

    @property
    def parked(self) -> int:
        """Parameters that are not on the device."""
        return self.total - self.held

    @property
    def choices(self) -> int:
        """Sets of routed experts the router can give a token, group limits included."""
        groups, chosen = self.config.groups, self.config.num_experts_per_tok or 0
        limit = min(groups, self.config.topk_group or groups)
        size = self.config.experts // groups
        return sum(comb(groups, used) * _spread(chosen, size, used) for used in range(1, limit + 1))


def plan(
    model: str | Path | ModelConfig,
    train_experts: int | None = 8,
    frozen_experts: int = 0,
    hold: Hold = "weights",
) -> Plan:
    """Count the parameters of a model and of one slice of it.

    Args:
        model: a preset, a checkpoint folder, a ``config.json``, or the configuration itself.
        train_experts: routed experts trained in each layer; None trains the whole model.
        frozen_experts: routed experts per layer kept beside them, which the router may choose.
        hold: in what form, as in a run file.

    Raises:
        ConfigError: if there is no such model, or its layers do not have that many experts.
        CheckpointError: if the folder has no readable ``config.json``.
    """
    name, config = find_model(model)
    return params(config, train_experts, frozen_experts, name, hold)


def params(
    config: ModelConfig,
    train_experts: int | None = 8,
    frozen_experts: int = 0,
    name: str | None = None,
    hold: Hold = "weights",
) -> Plan:
    """`plan` for a configuration.

    Raises:
        ConfigError: if its layers do not have that many experts.
    """
    name = name or config.model_type
    _check_slice(config, name, train_experts, frozen_experts)
    if hold != "weights" and not frozen_experts:
        raise ConfigError(
            f"hold={hold!r} has no use with frozen_experts=0; keep some experts, or remove it"
        )
    roles: Counter[Role] = Counter()
    mtp = copies = 0
    depth, alike = config.num_hidden_layers, layers_alike(config)
    for spec in tensors(config, alike):
        if spec.layer is None or spec.layer < depth:
            roles[spec.role] += spec.size * (1 if spec.layer is None else alike[spec.layer])
        else:
            mtp += spec.size
            copies += spec.size if spec.copy_of else 0
    return Plan(name, config, train_experts, frozen_experts, dict(roles), mtp, copies, hold)


def layers_alike(config: ModelConfig) -> dict[int, int]:
    """One layer of each kind with how many there are of it; every prediction module by itself."""
    depth = config.num_hidden_layers
    moe = set(config.moe_layers)
    dense = [layer for layer in range(depth) if layer not in moe]
    alike = {kind[0]: len(kind) for kind in (dense, config.moe_layers) if kind}
    return alike | {depth + k: 1 for k in range(config.num_nextn_predict_layers)}


def _check_slice(
    config: ModelConfig, name: str, train_experts: int | None, frozen_experts: int
) -> None:
    """Refuse a slice that cannot be trained."""
    if train_experts is None:
        if frozen_experts:
            raise ConfigError(
                f"frozen_experts={frozen_experts} has no meaning when the whole model is trained; "
                "give train_experts too"
            )
        return
    if not config.experts:
        raise ConfigError(
            f"train_experts={train_experts}: {name} is dense and has no experts to choose; "
            "use train_experts=None, which trains the whole model"
        )
    if train_experts < 1 or frozen_experts < 0:
        raise ConfigError(
            f"train_experts={train_experts} and frozen_experts={frozen_experts} are no slice; "
            "train at least 1 expert and keep 0 or more frozen"
        )
    resident, chosen = train_experts + frozen_experts, config.num_experts_per_tok or 0
    if resident > config.experts:
        raise ConfigError(
            f"train_experts={train_experts} and frozen_experts={frozen_experts} make {resident} "
            f"experts, a layer of {name} has n_routed_experts={config.experts}; lower one of them"
        )
    if resident < chosen:
        raise ConfigError(
            f"train_experts={train_experts} and frozen_experts={frozen_experts} leave the router "
            f"{resident} experts, it chooses num_experts_per_tok={chosen}; raise one of them"
        )


def _spread(chosen: int, size: int, groups: int) -> int:
    """Ways to choose from ``groups`` groups of ``size`` experts so that every group is used."""
    return sum(
        (-1) ** (groups - kept) * comb(groups, kept) * comb(kept * size, chosen)
        for kept in range(groups + 1)
    )
