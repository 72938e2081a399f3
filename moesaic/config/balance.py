"""`BalanceConfig`: what keeps experts evenly loaded. Nothing does unless it is asked for."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from moesaic.config.model import ModelConfig
from moesaic.config.schedule import Curve
from moesaic.config.settings import Settings
from moesaic.errors import ConfigError


class DroppingConfig(Settings):
    """Token-expert pairs beyond a device's capacity are not computed in training.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.2.4, with the defaults. GShard and Switch are
    ``order = "position"`` with `BalanceConfig.devices` as many as experts.
    """

    capacity_factor: PositiveFloat = 1.0
    """Capacity of a device over its average number of pairs."""
    order: Literal["score", "position"] = "score"
    """Keep the highest scores; or earlier tokens, all first choices before all second ones."""
    exempt_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the sequences, drawn anew for every step, of which nothing is dropped."""


class BalanceConfig(Settings):
    """Weights of the balance losses, speed of the bias step, and dropping."""

    expert_loss: PositiveFloat | None = None
    """alpha 1: even load of the experts over each sequence. DeepSeekMoE 16B had 0.001."""
    device_loss: PositiveFloat | None = None
    """alpha 2: even load of the devices. DeepSeek-V2 had 0.05."""
    communication_loss: PositiveFloat | None = None
    """alpha 3: even sending to the devices. DeepSeek-V2 had 0.02."""
    sequence_loss: PositiveFloat | None = None
    """alpha of V3: `expert_loss` on normalised scores, without the bias. DeepSeek-V3 had 0.0001."""
    devices: PositiveInt | None = None
    """Devices that hold equal, consecutive parts of the experts; None takes the model's groups."""
    bias_speed: Curve | None = None
    """gamma: how far an expert's choice bias moves after a step. DeepSeek-V3 had 0.001, then 0."""
    dropping: DroppingConfig | None = None
    """Capacity of the devices; None drops nothing."""

    @model_validator(mode="after")
    def _devices_are_used(self) -> Self:
        users = (self.device_loss, self.communication_loss, self.dropping)
        if self.devices is not None and all(user is None for user in users):
            raise ValueError(
                f"devices={self.devices} has no meaning without device_loss, communication_loss or "
                "dropping; remove it, or add one of them"
            )
        return self

    def devices_of(self, model: ModelConfig) -> int:
        """Devices the experts of a model are spread over.

        Raises:
            ConfigError: if there is but one, or the experts cannot be spread evenly.
        """
        devices = self.devices or model.groups
        if devices == 1:
            raise ConfigError(
                "balance.devices is missing, and the model's experts form no groups; set it to the "
                "number of devices to balance"
            )
        if model.experts % devices:
            raise ConfigError(
                f"balance.devices={devices} does not divide n_routed_experts={model.experts}; give "
                "a divisor, so that every device holds as many experts"
            )
        return devices

    def check(self, model: ModelConfig) -> None:
        """Hold these settings against a model.

        Raises:
            ConfigError: if the model has nothing for one of them to act on.
        """
        for name in BalanceConfig.model_fields:
            if getattr(self, name) is None:
                continue
            if not model.experts:
                raise ConfigError(f"balance.{name} has no meaning for a dense model; remove it")
            if name.endswith("_loss") and model.topk_method == "hash":
                raise ConfigError(
                    f"balance.{name} has nothing to train: topk_method='hash' learns no scores; "
                    "remove it"
                )
        if self.bias_speed is not None and model.topk_method != "noaux_tc":
            raise ConfigError(
                "balance.bias_speed moves the choice bias, which routers with "
                f"topk_method={model.topk_method!r} do not have; choose topk_method='noaux_tc', or "
                "balance by expert_loss"
            )
        if any(part is not None for part in (self.device_loss, self.communication_loss)):
            self.devices_of(model)
        if self.dropping is not None:
            self.devices_of(model)
