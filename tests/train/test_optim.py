import pytest
import torch
from memory_meter import most_allocated
from torch import nn

from moesaic.config.train import OptimizerConfig
from moesaic.errors import ConfigError
from moesaic.model.build import build_model
from moesaic.train.optim import build_optimizer, clip_, gradient_norm, set_learning_rate


def test_matrices_decay_and_norms_do_not(tiny_config):
    model = build_model(tiny_config("v2"))
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if parameter.ndim == 1 else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
        assert (parameter.ndim == 1) == ("norm" in name)


def test_frozen_parameters_are_left_out(tiny_config):
    model = build_model(tiny_config("v1"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("experts" in name)
    optimizer = build_optimizer(model, OptimizerConfig())
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == sum("experts" in name for name, _ in model.named_parameters())


def test_a_model_with_nothing_to_train_is_refused(tiny_config):
    model = build_model(tiny_config("v1")).requires_grad_(False)
    with pytest.raises(ConfigError) as error:
        build_optimizer(model, OptimizerConfig())
    assert "every parameter of the model is frozen" in str(error.value)


def moved(config: OptimizerConfig, dtype: torch.dtype, size: float, most: float | None):
    """Weights after two steps by gradients of a size, clipped to a length, and what it found."""
    model = nn.Linear(8, 8, bias=False, dtype=dtype)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.1)
    nn.init.ones_(model.weight)
    for step in (1, 2):
        grad = torch.linspace(-1, step, 64).view(8, 8).to(dtype)
        model.weight.grad = grad * (size / grad.float().norm())
        norm = gradient_norm(model).item()
        clip_(model, optimizer, norm, most)
        optimizer.step()
    return model.weight.detach(), norm


# eps is large, so that the size of a gradient is seen in the step.
@pytest.mark.parametrize("states", ["weights", "int8"])
def test_a_long_gradient_is_shortened_and_a_short_one_kept(states: str):
    config = OptimizerConfig.model_validate({"eps": 1.0, "states": states})
    long, norm = moved(config, torch.float32, 8.0, 0.5)
    assert norm == pytest.approx(8.0)
    short, _ = moved(config, torch.float32, 0.5, None)
    kept, _ = moved(config, torch.float32, 0.5, 0.6)
    unclipped, _ = moved(config, torch.float32, 8.0, None)
    torch.testing.assert_close(long, short)
    assert torch.equal(kept, short)
    assert not torch.allclose(long, unclipped, atol=1e-3)


@pytest.mark.parametrize("states", ["weights", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_and_shortening_a_gradient_needs_no_copy_of_it(dtype: torch.dtype, states: str):
    model = nn.Linear(512, 512, bias=False, dtype=dtype)
    optimizer = build_optimizer(model, OptimizerConfig.model_validate({"states": states}))
    model.weight.grad = torch.ones_like(model.weight)
    most = most_allocated(lambda: clip_(model, optimizer, gradient_norm(model).item(), 1.0))
    assert most < model.weight.grad.nbytes / 100


def test_gradients_are_added_up_in_float32_if_asked():
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    build_optimizer(model, OptimizerConfig(gradients="float32"))
    for size in (1.0, 2.0**-12):
        (model.weight.sum() * size).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32
    assert model.weight.grad[0, 0] == 1 + 2.0**-12


@pytest.mark.parametrize("states", ["weights", "float32"])
def test_rounding_at_random_where_nothing_is_rounded_is_refused(states: str):
    model = nn.Linear(4, 4)
    config = OptimizerConfig.parse({"states": states, "stochastic_rounding": True})
    with pytest.raises(ConfigError) as error:
        build_optimizer(model, config)
    assert "optimizer.stochastic_rounding=true, but weights and moments are in float32" in str(
        error.value
    )
    assert "set precision='bfloat16' or optimizer.states to 'bfloat16' or 'int8'" in str(
        error.value
    )


@pytest.mark.parametrize("settings", [{}, {"states": "int8"}, {"states": "float32"}])
def test_a_step_with_own_moments_decays_matrices_and_no_norms(tiny_config, settings):
    model = build_model(tiny_config("v2"), dtype="bfloat16")
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5, **settings))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "norm" in name else 0.75
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
