import pytest
import torch

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


def test_a_long_gradient_is_shortened_and_a_short_one_kept(tiny_config):
    model = build_model(tiny_config("v1"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = gradient_norm(model)
    assert norm.item() == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5)
    clip_(model, norm.item(), 2 * norm.item())
    assert gradient_norm(model).item() == pytest.approx(norm.item())
    clip_(model, norm.item(), 1.0)
    assert gradient_norm(model).item() == pytest.approx(1.0, rel=1e-4)
