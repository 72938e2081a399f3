"""Which experts a token goes to, and with what gate values."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_ids, random_model
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.model.context import Context
from moesaic.model.residency import Residency
from moesaic.model.rope import Rope
from moesaic.model.router import Router
from moesaic.model.routing import Routing
from moesaic.model.trace import RoutingTrace

Build = Callable[..., ModelConfig]

WIDE: dict[str, Any] = {"n_routed_experts": 24, "n_group": 6, "topk_group": 2}
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("v1", {"n_routed_experts": 24}),
    "v1 normalised": ("v1", {"n_routed_experts": 24, "norm_topk_prob": True}),
    "v2": ("v2", WIDE),
    "v3": ("v3", WIDE),
    "v3 no groups": ("v3", {**WIDE, "n_group": 1, "topk_group": 1}),
    "v3 groups of one": ("v3", {**WIDE, "n_group": 24, "topk_group": 3}),
}
ANY_CHOICE = pytest.mark.parametrize(("family", "changes"), CHOICES.values(), ids=CHOICES.keys())


def random_router(
    config: ModelConfig, allowed: Sequence[int] | None = None, seed: int = 0
) -> Router:
    generator = torch.Generator().manual_seed(seed)
    router = Router(config, range(config.experts) if allowed is None else allowed)
    with torch.no_grad():
        router.weight.normal_(0, 1, generator=generator)
        if router.e_score_correction_bias is not None:
            router.e_score_correction_bias.normal_(0, 0.3, generator=generator)
    return router


def route(router: Router, x_TD: Tensor, config: ModelConfig) -> Routing:
    tokens = torch.arange(len(x_TD))[None]
    return router(x_TD, Context(tokens, Rope(config)(tokens), None))


def random_tokens(config: ModelConfig, tokens: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, config.hidden_size, generator=generator)


def groups_of(ids_TK: Tensor, config: ModelConfig) -> list[set[int]]:
    return [set(row) for row in (ids_TK // (config.experts // config.groups)).tolist()]


@ANY_CHOICE
def test_every_token_gets_k_different_experts(
    tiny_config: Build, family: str, changes: dict[str, Any]
):
    config = tiny_config(family, **changes)
    routing = route(random_router(config), random_tokens(config, 200), config)
    assert routing.ids_TK.shape == (200, config.num_experts_per_tok)
    assert all(len(set(row)) == len(row) for row in routing.ids_TK.tolist())


@ANY_CHOICE
def test_the_load_counts_every_choice(tiny_config: Build, family: str, changes: dict[str, Any]):
    config = tiny_config(family, **changes)
    routing = route(random_router(config), random_tokens(config, 200), config)
    counted = [int((routing.ids_TK == expert).sum()) for expert in range(config.experts)]
    assert routing.load_E.tolist() == counted
    assert routing.load_E.dtype == torch.int64


@ANY_CHOICE
def test_experts_come_from_the_best_groups_only(
    tiny_config: Build, family: str, changes: dict[str, Any]
):
    config = tiny_config(family, **changes)
    routing = route(random_router(config), random_tokens(config, 200), config)
    limit = config.topk_group if config.groups > 1 else 1
    assert limit is not None
    assert all(len(groups) <= limit for groups in groups_of(routing.ids_TK, config))


@pytest.mark.parametrize("normalised", [True, False])
def test_gate_values_of_v3_are_sigmoids_over_their_sum_times_the_factor(
    tiny_config: Build, normalised: bool
):
    config = tiny_config("v3", norm_topk_prob=normalised, routed_scaling_factor=2.5)
    router, x_TD = random_router(config), random_tokens(config, 50)
    routing = route(router, x_TD, config)
    chosen_TK = torch.sigmoid(x_TD @ router.weight.T).gather(1, routing.ids_TK)
    want_TK = chosen_TK / chosen_TK.sum(1, keepdim=True) if normalised else chosen_TK
    torch.testing.assert_close(routing.weights_TK, 2.5 * want_TK)


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_gate_values_of_v1_and_v2_are_shares_of_all_experts(tiny_config: Build, family: str):
    config = tiny_config(family, norm_topk_prob=False, routed_scaling_factor=16.0)
    router, x_TD = random_router(config), random_tokens(config, 50)
    routing = route(router, x_TD, config)
    shares_TE = torch.softmax(x_TD @ router.weight.T, dim=1)
    torch.testing.assert_close(routing.scores_TE, shares_TE)
    torch.testing.assert_close(routing.weights_TK, 16 * shares_TE.gather(1, routing.ids_TK))


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_normalised_gate_values_of_v1_and_v2_add_up_to_one(tiny_config: Build, family: str):
    """The published code scales only gate values that it does not normalise."""
    config = tiny_config(family, norm_topk_prob=True, routed_scaling_factor=16.0)
    routing = route(random_router(config), random_tokens(config, 50), config)
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(50))


def test_the_bias_moves_the_choice_but_not_the_gate_value(tiny_config: Build):
    config = tiny_config("v3", n_group=1, topk_group=1, norm_topk_prob=False)
    router, x_TD = random_router(config), random_tokens(config, 100)
    bias_E = router.e_score_correction_bias
    assert bias_E is not None
    bias_E.zero_()
    before = route(router, x_TD, config)
    bias_E[5] = 10.0
    after = route(router, x_TD, config)
    assert (before.ids_TK != 5).all(dim=1).any()
    assert (after.ids_TK == 5).any(dim=1).all()
    assert torch.equal(after.scores_TE, before.scores_TE)
    scores_TK = after.scores_TE.gather(1, after.ids_TK)
    torch.testing.assert_close(after.weights_TK, config.routed_scaling_factor * scores_TK)


def test_a_negative_bias_empties_an_expert(tiny_config: Build):
    config = tiny_config("v3", **WIDE)
    router = random_router(config)
    assert router.e_score_correction_bias is not None
    router.e_score_correction_bias[7] = -10.0
    assert route(router, random_tokens(config, 200), config).load_E[7] == 0


def test_the_bias_is_learned_by_no_gradient(tiny_config: Build):
    config = tiny_config("v3")
    names = {name for name, _ in random_model(config).named_parameters()}
    assert not any("bias" in name for name in names)


def test_the_choice_passes_gradients_through_the_gate_values_only(tiny_config: Build):
    config = tiny_config("v3")
    router, x_TD = random_router(config), random_tokens(config, 50).requires_grad_()
    routing = route(router, x_TD, config)
    assert not routing.ids_TK.requires_grad
    assert not routing.load_E.is_floating_point()
    routing.weights_TK.square().sum().backward()
    assert router.weight.grad is not None
    assert router.weight.grad.any()


@given(data=st.data())
def test_an_expert_that_is_not_allowed_is_never_chosen(tiny_config: Build, data: st.DataObject):
    family, changes = data.draw(st.sampled_from(list(CHOICES.values())))
    config = tiny_config(family, **changes)
    needed = config.num_experts_per_tok or 0
    experts = st.sets(st.integers(0, config.experts - 1), min_size=needed)
    allowed = sorted(data.draw(experts))
    router = random_router(config, allowed, seed=data.draw(st.integers(0, 9)))
    routing = route(router, random_tokens(config, 30), config)
    assert set(routing.ids_TK.flatten().tolist()) <= set(allowed)
    assert all(len(set(row)) == needed for row in routing.ids_TK.tolist())
    assert routing.weights_TK.isfinite().all()


@given(data=st.data())
def test_a_natural_choice_that_is_allowed_is_kept(tiny_config: Build, data: st.DataObject):
    """Choice, gate values and scores, whichever other experts are forbidden."""
    family, changes = data.draw(st.sampled_from(list(CHOICES.values())))
    config = tiny_config(family, **changes)
    seed = data.draw(st.integers(0, 99))
    x_TD = random_tokens(config, 1, seed)
    natural = route(random_router(config), x_TD, config)
    others = data.draw(st.sets(st.integers(0, config.experts - 1)))
    allowed = sorted(others | set(natural.ids_TK[0].tolist()))
    limited = route(random_router(config, allowed), x_TD, config)
    assert torch.equal(limited.ids_TK, natural.ids_TK)
    assert torch.equal(limited.weights_TK, natural.weights_TK)
    assert torch.equal(limited.scores_TE, natural.scores_TE)


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_the_best_groups_come_first_where_few_are_allowed(tiny_config: Build, family: str):
    """Allowed experts of a token's best groups before any other, and those by their scores."""
    config = tiny_config(family, **WIDE)
    x_TD = random_tokens(config, 100)
    allowed = [1, 5, 9, 13, 17, 21]  # one of each group of four
    natural = random_router(config)
    if natural.e_score_correction_bias is not None:
        natural.e_score_correction_bias.zero_()
    limited = Router(config, allowed)
    limited.load_state_dict(natural.state_dict())
    scores_TE = route(natural, x_TD, config).scores_TE
    best = 2 if family == "v3" else 1
    group_scores = scores_TE.unflatten(1, (6, 4)).topk(best, dim=-1).values.sum(-1)
    best_groups = group_scores.topk(2, dim=1).indices.tolist()
    for row, groups, scores in zip(
        route(limited, x_TD, config).ids_TK.tolist(), best_groups, scores_TE.tolist(), strict=True
    ):
        ranked = sorted(allowed, key=lambda e, s=scores, g=groups: (e // 4 not in g, -s[e]))
        assert row == ranked[: len(row)]


@ANY_CHOICE
def test_permuting_experts_permutes_nothing_else(
    tiny_config: Build, family: str, changes: dict[str, Any]
):
    """Renaming experts, within groups and group by group, leaves every logit as it is."""
    config = tiny_config(family, num_hidden_layers=2, initializer_range=0.2, **changes)
    model = random_model(config, dtype="float64")
    ids_BS, order_E = random_ids(config, 2, 20), permutation(config)
    before, after = RoutingTrace(), RoutingTrace()
    logits_BSV = model(ids_BS, trace=before)
    for moe in model.moe_layers().values():
        state = moe.state_dict()
        moe.load_state_dict({n: x if "shared" in n else x[order_E] for n, x in state.items()})
    torch.testing.assert_close(model(ids_BS, trace=after), logits_BSV)
    for layer, routing in after.layers.items():
        assert torch.equal(routing.load_E, before.layers[layer].load_E[order_E])


def permutation(config: ModelConfig) -> Tensor:
    """Another order of the experts that keeps those of a group together."""
    generator = torch.Generator().manual_seed(3)
    size = config.experts // config.groups
    groups = torch.randperm(config.groups, generator=generator)
    return torch.cat([g * size + torch.randperm(size, generator=generator) for g in groups])


@ANY_CHOICE
@pytest.mark.parametrize("how", ["bfloat16 weights", "autocast"])
def test_scores_are_computed_in_float32(
    tiny_config: Build, family: str, changes: dict[str, Any], how: str
):
    """What bfloat16 rounds away would change the choice between close experts."""
    config = tiny_config(family, **changes)
    router, x_TD = random_router(config), random_tokens(config, 60).bfloat16()
    router.weight.data = router.weight.data.bfloat16()
    exact = random_router(config)
    exact.weight.data = router.weight.data.float()
    want = route(exact, x_TD.float(), config)
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = route(exact, x_TD, config)
    else:
        got = route(router, x_TD, config)
    assert got.scores_TE.dtype == got.weights_TK.dtype == torch.float32
    assert torch.equal(got.scores_TE, want.scores_TE)
    assert torch.equal(got.ids_TK, want.ids_TK)
    assert torch.equal(got.weights_TK, want.weights_TK)


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_whole_layer_allowed_is_no_limit(tiny_config: Build, family: str):
    config = tiny_config(family)
    everything = Residency.only({layer: range(config.experts) for layer in config.moe_layers})
    ids_BS = random_ids(config, 2, 20)
    model, limited = random_model(config), random_model(config, residency=everything)
    assert torch.equal(model(ids_BS), limited(ids_BS))
