"""AdamW over what a model trains, and the length of its gradient."""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from moesaic.config.train import OptimizerConfig
from moesaic.errors import ConfigError


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What gradients move, by name: every parameter that is not frozen.

    Raises:
        ConfigError: if there is none.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("every parameter of the model is frozen; let at least one be trained")
    return trained


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose states have the type of the weights; the learning rate is set step by step.

    Matrices decay, and so do embeddings and routers. The reports print one weight decay and do not
    say of what; norms, the only vectors among the parameters, are left out here: decay would pull
    their gains to 0.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 4.2.
    """
    trained = trained_parameters(model).values()
    groups = (
        ([p for p in trained if p.ndim > 1], config.weight_decay),
        ([p for p in trained if p.ndim <= 1], 0.0),
    )
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay} for params, decay in groups if params],
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """Length of all gradients together."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return get_total_norm(grads, foreach=True)


def clip_(model: nn.Module, norm: float, most: float) -> None:
    """Shorten gradients whose joint length ``norm`` is more than ``most`` to that length."""
    clip_grads_with_norm_(model.parameters(), most, torch.tensor(norm), foreach=True)
