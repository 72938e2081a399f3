"""Losses are sums of cross-entropies over the positions that are learned."""

from collections.abc import Callable

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.kernels.reference import IGNORED
from moesaic.model.trace import RoutingTrace

Build = Callable[..., ModelConfig]

FAMILIES = pytest.mark.parametrize("family", ["v1", "v2", "v3"])


def learned_labels(config: ModelConfig, *shape: int, ignored: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels_BS = random_ids(config, *shape, seed=1)
    labels_BS[torch.rand(shape, generator=generator) < ignored] = IGNORED
    return labels_BS


@FAMILIES
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_the_loss_is_the_cross_entropy_of_the_logits(tiny_config: Build, family: str, tied: bool):
    config = tiny_config(family, tie_word_embeddings=tied)
    model = random_model(config)
    ids_BS, labels_BS = random_ids(config, 2, 20), learned_labels(config, 2, 20)
    loss = model.loss(ids_BS, labels_BS)
    want = F.cross_entropy(
        model(ids_BS).flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    torch.testing.assert_close(loss.next_token, want)
    assert loss.tokens == (labels_BS != IGNORED).sum()
    assert loss.tokens.dtype == torch.int64


@FAMILIES
def test_losses_of_batches_add_up(tiny_config: Build, family: str):
    """So that gradient accumulation weighs every token alike, however batches are cut."""
    config = tiny_config(family)
    model = random_model(config)
    ids_BS, labels_BS = random_ids(config, 6, 10), learned_labels(config, 6, 10)
    whole = model.loss(ids_BS, labels_BS)
    parts = [
        model.loss(ids, labels)
        for ids, labels in zip(ids_BS.split(2), labels_BS.split(2), strict=True)
    ]
    torch.testing.assert_close(whole.next_token, torch.stack([p.next_token for p in parts]).sum())
    assert whole.tokens == sum(part.tokens for part in parts)


@FAMILIES
def test_nothing_to_learn_is_a_loss_of_zero_and_no_gradient(tiny_config: Build, family: str):
    config = tiny_config(family)
    model = random_model(config)
    ids_BS = random_ids(config, 2, 8)
    loss = model.loss(ids_BS, torch.full_like(ids_BS, IGNORED))
    assert loss.next_token == loss.tokens == 0
    assert all(total == 0 for total in loss.mtp)
    assert all(count == 0 for count in loss.mtp_tokens)
    torch.stack([loss.next_token, *loss.mtp]).sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_labels_that_are_not_learned_change_nothing_but_what_is_counted(tiny_config: Build):
    config = tiny_config("v3")
    model = random_model(config)
    ids_BS, labels_BS = random_ids(config, 1, 12), random_ids(config, 1, 12, seed=1)
    only_BS = torch.full_like(labels_BS, IGNORED)
    only_BS[0, 4] = labels_BS[0, 4]
    loss = model.loss(ids_BS, only_BS)
    log_p = torch.log_softmax(model(ids_BS)[0, 4], dim=-1)
    torch.testing.assert_close(loss.next_token, -log_p[labels_BS[0, 4]])
    assert loss.tokens == 1
    assert [int(count) for count in loss.mtp_tokens] == [1]


@pytest.mark.parametrize("depths", [0, 1, 3])
def test_each_prediction_depth_has_a_loss_over_one_position_fewer(tiny_config: Build, depths: int):
    """DeepSeek-V3 (arXiv 2412.19437) eq. 24."""
    config = tiny_config("v3", num_nextn_predict_layers=depths)
    loss = random_model(config).loss(random_ids(config, 4, 10), random_ids(config, 4, 10, seed=1))
    assert loss.next_token.shape == ()
    assert [total.shape for total in loss.mtp] == [()] * depths
    assert [int(count) for count in loss.mtp_tokens] == [4 * (10 - k) for k in range(1, depths + 1)]
    assert all(total > 0 for total in loss.mtp)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_row_too_short_for_a_depth_has_nothing_to_learn_there(tiny_config: Build, length: int):
    config = tiny_config("v3", num_nextn_predict_layers=4)
    ids_BS = random_ids(config, 2, length)
    loss = random_model(config).loss(ids_BS, random_ids(config, 2, length, seed=1))
    expected = [2 * max(0, length - depth) for depth in range(1, 5)]
    assert [int(count) for count in loss.mtp_tokens] == expected
    assert [bool(total) for total in loss.mtp] == [count > 0 for count in expected]


def test_further_labels_never_cross_documents(tiny_config: Build):
    """Each document's last positions have no further label, not even the next document's."""
    config = tiny_config("v3", num_nextn_predict_layers=3)
    lengths = (5, 1, 2, 8)
    documents_BS = torch.repeat_interleave(torch.tensor(lengths))[None]
    ids_BS, labels_BS = random_ids(config, 1, 16), random_ids(config, 1, 16, seed=1)
    loss = random_model(config).loss(ids_BS, labels_BS, documents_BS=documents_BS)
    expected = [sum(max(0, n - depth) for n in lengths) for depth in (1, 2, 3)]
    assert [int(count) for count in loss.mtp_tokens] == expected


def test_a_module_predicts_the_token_after_the_next(tiny_config: Build):
    """Depth k at position s learns the label of position s + k, and sees no token after s + k."""
    config = tiny_config("v3", num_nextn_predict_layers=2, initializer_range=0.2)
    model = random_model(config)
    ids_BS, labels_BS = random_ids(config, 1, 12), random_ids(config, 1, 12, seed=1)
    for depth in (1, 2):
        only_BS = torch.full_like(labels_BS, IGNORED)
        only_BS[0, 6] = labels_BS[0, 6]
        base = model.loss(ids_BS, only_BS).mtp[depth - 1]
        seen = []
        for position in range(12):
            changed_BS = ids_BS.clone()
            changed_BS[0, position] = (ids_BS[0, position] + 1) % config.vocab_size
            seen.append(bool(model.loss(changed_BS, only_BS).mtp[depth - 1] != base))
        assert seen == [True] * 7 + [False] * 5


def test_the_modules_learn_through_the_shared_embedding_and_head(tiny_config: Build):
    config = tiny_config("v3")
    model = random_model(config)
    ids_BS = random_ids(config, 2, 10)
    model.loss(ids_BS, ids_BS).mtp[0].backward()
    for shared in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        gradient = model.get_parameter(shared).grad
        assert gradient is not None
        assert gradient.any()


@FAMILIES
def test_the_trace_holds_every_layer_with_experts(tiny_config: Build, family: str):
    config = tiny_config(family)
    model, trace = random_model(config), RoutingTrace()
    ids_BS = random_ids(config, 2, 7)
    model.loss(ids_BS, ids_BS, trace=trace)
    depth = config.num_hidden_layers + config.num_nextn_predict_layers
    assert list(trace.layers) == list(model.moe_layers()) == list(range(1, depth))
    for routing in trace.layers.values():
        assert routing.scores_TE.shape == (14, config.experts)
        assert routing.ids_TK.shape == routing.weights_TK.shape == (14, config.num_experts_per_tok)
        assert routing.load_E.shape == (config.experts,)


@FAMILIES
def test_logits_are_traced_without_the_prediction_modules(tiny_config: Build, family: str):
    config = tiny_config(family)
    model, trace = random_model(config), RoutingTrace()
    model(random_ids(config, 2, 7), trace=trace)
    assert list(trace.layers) == list(config.moe_layers)


def test_experts_in_every_second_layer_are_where_the_configuration_says(tiny_config: Build):
    config = tiny_config("v2", num_hidden_layers=5, first_k_dense_replace=1, moe_layer_freq=2)
    model, trace = random_model(config), RoutingTrace()
    model(random_ids(config, 1, 3), trace=trace)
    assert list(trace.layers) == list(model.moe_layers()) == [2, 4]
