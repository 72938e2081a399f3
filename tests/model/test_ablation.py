"""Passes with experts switched off: what the router and the sum of experts do then."""

from collections.abc import Callable

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.model.ablation import Ablation
from moesaic.model.routing import Routing
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer

Config = Callable[..., ModelConfig]


@torch.no_grad()
def _first_layer(model: Transformer, ablation: Ablation | None) -> tuple[float, Routing]:
    """The loss, and the routing of the first layer with experts: nothing before it is ablated."""
    ids_BS, trace = random_ids(model.config, 2, 9), RoutingTrace()
    loss = model.loss(ids_BS, ids_BS.roll(-1, 1), trace=trace, ablation=ablation)
    return loss.next_token.item(), trace.layers[1]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_token_passes_over_its_best_experts_and_goes_to_the_next(
    family: str, tiny_config: Config
) -> None:
    model = random_model(tiny_config(family))
    natural = _first_layer(model, Ablation(chosen=5))[1]
    ablated = _first_layer(model, Ablation(skipped=2))[1]
    assert torch.equal(ablated.ids_TK, natural.ids_TK[:, 2:])
    assert torch.equal(ablated.scores_TE, natural.scores_TE)


def test_gate_values_are_those_of_the_experts_gone_to(tiny_config: Config) -> None:
    plain = _first_layer(random_model(tiny_config("v1")), Ablation(skipped=1, chosen=2))[1]
    assert torch.equal(plain.weights_TK, plain.scores_TE.gather(1, plain.ids_TK))
    normalised = _first_layer(random_model(tiny_config("v3")), Ablation(skipped=1, chosen=2))[1]
    assert normalised.weights_TK.sum(1).tolist() == pytest.approx([2.5] * 18)  # the scale


def test_without_shared_experts_the_loss_is_that_of_a_model_that_has_none(
    tiny_config: Config,
) -> None:
    model = random_model(tiny_config("v1"))
    bare = Transformer(tiny_config("v1", n_shared_experts=None))
    state = model.state_dict()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    assert _first_layer(model, Ablation(shared=False))[0] == _first_layer(bare, None)[0]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_nothing_switched_off_changes_nothing(family: str, tiny_config: Config) -> None:
    model = random_model(tiny_config(family))
    assert _first_layer(model, Ablation())[0] == _first_layer(model, None)[0]
    as_many = Ablation(chosen=model.config.num_experts_per_tok)
    assert _first_layer(model, as_many)[0] == _first_layer(model, None)[0]


@pytest.mark.parametrize(
    ("changes", "ablation", "message"),
    [
        ({}, Ablation(skipped=6), "skipped=6 leaves 2 of 8 experts, a token goes to 3; lower one"),
        ({}, Ablation(chosen=9), "skipped=0 leaves 8 of 8 experts, a token goes to 9; lower one"),
        (
            {"topk_method": "hash", "num_experts_per_tok": 1},
            Ablation(skipped=1),
            "skipped=1 and chosen=1 are not possible with topk_method='hash', which knows no",
        ),
    ],
)
def test_what_cannot_be_switched_off_is_refused(
    changes: dict[str, object], ablation: Ablation, message: str, tiny_config: Config
) -> None:
    with pytest.raises(ConfigError) as error:
        _first_layer(random_model(tiny_config("v1", **changes)), ablation)
    assert str(error.value).startswith(message)
