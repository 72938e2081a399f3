"""AdamW over what a model trains, and the length of its gradient."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from moesaic.config.train import OptimizerConfig
from moesaic.errors import ConfigError
from moesaic.train.adamw import AdamW
from moesaic.train.moments import Codes, Floats, Moment

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What gradients move, by name: every parameter that is not frozen.

    Raises:
        ConfigError: if there is none.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("every parameter of the model is frozen; let at least one be trained")
    return trained


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, generator: torch.Generator | None = None
) -> torch.optim.Optimizer:
    """AdamW as the settings say; the learning rate is set step by step.

    Matrices decay, and so do embeddings and routers. The reports print one weight decay and do not
    say of what; norms, the only vectors among the parameters, are left out here: decay would pull
    their gains to 0.

    Args:
        model: what is trained; its gradients get their type here.
        config: the settings.
        generator: on the CPU, for stochastic rounding; None for a run that is never resumed.

    Raises:
        ConfigError: if nothing is trained, or there is nothing to round.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 4.2.
    """
    trained = list(trained_parameters(model).values())
    _check_rounding(trained, config)
    decays = (
        ([p for p in trained if p.ndim > 1], config.weight_decay),
        ([p for p in trained if p.ndim <= 1], 0.0),
    )
    groups = [{"params": params, "weight_decay": decay} for params, decay in decays if params]
    if _is_plain(trained, config):
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
    if config.gradients == "float32":
        for parameter in trained:
            parameter.grad_dtype = torch.float32
    rounds = (generator or torch.Generator()) if config.stochastic_rounding else None
    return AdamW(
        groups,
        config.betas,
        config.eps,
        lambda dtype: _moments(config, dtype),
        config.offload,
        rounds,
    )


def fresh_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimizer made here keeps for a parameter, as before the first step."""
    if isinstance(optimizer, AdamW):
        return optimizer.fresh_state(parameter)
    moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **moments}


def _moments(config: OptimizerConfig, dtype: torch.dtype) -> tuple[Moment, Moment]:
    """How both moments of weights of a type are held."""
    if config.states == "int8":
        return Codes(torch.int8), Codes(torch.uint8)
    held = Floats(dtype if config.states == "weights" else _FLOATS[config.states])
    return held, held


def _is_plain(trained: Iterable[nn.Parameter], config: OptimizerConfig) -> bool:
    """Whether weights, gradients and moments have one type and lie together."""
    if config.offload or config.stochastic_rounding:
        return False
    dtypes = {p.dtype for p in trained}
    alike = all(_moments(config, dtype)[0] == Floats(dtype) for dtype in dtypes)
    return alike and (config.gradients == "weights" or dtypes == {torch.float32})


def _check_rounding(trained: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
    """Refuse to round at random where everything is written as it is computed."""
    is_rounded = config.states in ("bfloat16", "int8") or any(
        p.dtype == torch.bfloat16 for p in trained
    )
    if config.stochastic_rounding and not is_rounded:
        raise ConfigError(
            "optimizer.stochastic_rounding=true, but weights and moments are in float32 and "
            "nothing is rounded; set precision='bfloat16' or optimizer.states to 'bfloat16' or "
            "'int8', or leave it out"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """Length of all gradients together."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return get_total_norm(grads, foreach=True)


def clip_(
    model: nn.Module, optimizer: torch.optim.Optimizer, norm: float, most: float | None
) -> None:
    """Let the next step use gradients whose joint length ``norm`` is at most ``most``.

    Torch's fused AdamW divides them as it reads them, which saves a sweep over all of them.
    """
    too_long = most is not None and norm > most
    if isinstance(optimizer, torch.optim.AdamW):
        device = optimizer.param_groups[0]["params"][0].device
        scale = torch.tensor(norm / most, device=device) if most and too_long else None
        optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
    elif most is not None and too_long:
        clip_grads_with_norm_(model.parameters(), most, torch.tensor(norm), foreach=True)
