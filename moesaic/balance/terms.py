"""`BalanceTerm`: the balance losses that a run asks for, with their weights.

Letters: T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moesaic.balance import losses
from moesaic.config.balance import BalanceConfig
from moesaic.config.model import ModelConfig
from moesaic.model.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class BalanceTerm:
    """One balance loss of every layer."""

    name: str
    weight: float
    """Factor of the sum over layers."""
    of_layer: Callable[..., Tensor]
    """Loss of each sequence from ``(routing, rows, real_T=…)``."""

    def sum(self, trace: RoutingTrace, rows: int, real_T: Tensor | None = None) -> Tensor:
        """The loss, without its weight, over all layers and sequences of a batch."""
        layers = trace.layers.values()
        return torch.stack([self.of_layer(r, rows, real_T=real_T).sum() for r in layers]).sum()


def balance_terms(balance: BalanceConfig, model: ModelConfig) -> tuple[BalanceTerm, ...]:
    """The losses that are asked for.

    Raises:
        ConfigError: if the model has nothing for one of them to act on.
    """
    balance.check(model)
    terms = []
    if balance.expert_loss is not None:
        terms.append(BalanceTerm("expert_loss", balance.expert_loss, losses.expert_loss))
    if balance.device_loss is not None:
        loss = partial(losses.device_loss, devices=balance.devices_of(model))
        terms.append(BalanceTerm("device_loss", balance.device_loss, loss))
    if balance.communication_loss is not None:
        devices = balance.devices_of(model)
        loss = partial(
            losses.communication_loss, devices=devices, most_devices=_most_devices(model, devices)
        )
        terms.append(BalanceTerm("communication_loss", balance.communication_loss, loss))
    if balance.sequence_loss is not None:
        terms.append(BalanceTerm("sequence_loss", balance.sequence_loss, losses.sequence_loss))
    return tuple(terms)


def _most_devices(model: ModelConfig, devices: int) -> int:
    """M, the devices one token can be sent to: limited by its groups, or by its experts alone."""
    chosen = model.num_experts_per_tok or 0
    if model.groups == devices:
        return min(model.topk_group or devices, chosen)
    return min(devices, chosen)
