"""Recomputation changes nothing; lower precision changes little."""

from collections.abc import Callable

import pytest
import torch
from models import gradients, random_ids, random_model
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import Transformer

Build = Callable[..., ModelConfig]

FAMILIES = pytest.mark.parametrize("family", ["v1", "v2", "v3"])


def whole_loss(model: Transformer, ids_BS: Tensor, trace: RoutingTrace | None = None) -> Tensor:
    """Next-token and further losses, per token."""
    loss = model.loss(ids_BS, ids_BS.roll(-1, 1), trace=trace)
    counts = (loss.tokens, *loss.mtp_tokens)
    sums = (loss.next_token, *loss.mtp)
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)]).sum()


@FAMILIES
def test_recomputation_gives_the_same_loss_and_gradients_bit_for_bit(
    tiny_config: Build, family: str
):
    config = tiny_config(family)
    ids_BS = random_ids(config, 2, 20)
    results = []
    for recompute in (False, True):
        model = random_model(config, recompute=recompute)
        loss = whole_loss(model, ids_BS)
        loss.backward()
        results.append((loss, gradients(model)))
    (loss, found), (again, found_again) = results
    assert torch.equal(loss, again)
    assert found.keys() == found_again.keys()
    assert all(torch.equal(found[name], found_again[name]) for name in found)


@FAMILIES
def test_a_loss_on_the_trace_is_differentiated_under_recomputation_too(
    tiny_config: Build, family: str
):
    config = tiny_config(family)
    ids_BS = random_ids(config, 2, 20)
    results = []
    for recompute in (False, True):
        model, trace = random_model(config, recompute=recompute), RoutingTrace()
        loss = whole_loss(model, ids_BS, trace)
        (loss + sum(r.scores_TE.square().sum() for r in trace.layers.values())).backward()
        results.append(gradients(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@FAMILIES
def test_recomputation_keeps_less_for_the_backward_pass(tiny_config: Build, family: str):
    config = tiny_config(family)
    kept = []
    for recompute in (False, True):
        model = random_model(config, recompute=recompute)
        kept.append(0)

        def count(saved: Tensor) -> Tensor:
            kept[-1] += saved.numel()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            whole_loss(model, random_ids(config, 2, 50))
    assert kept[1] < kept[0] / 2


@FAMILIES
@pytest.mark.parametrize("how", ["compute_dtype", "autocast"])
def test_bfloat16_products_under_float32_weights_give_nearly_the_same(
    tiny_config: Build, family: str, how: str
):
    """Every expert is chosen, so that no near tie between two can turn a rounding into a leap."""
    config = tiny_config(family, num_experts_per_tok=8, n_group=1, topk_group=1)
    ids_BS = random_ids(config, 2, 50)
    exact, mixed = random_model(config), mixed_model(config, how)
    exact_loss = whole_loss(exact, ids_BS)
    exact_loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        loss = whole_loss(mixed, ids_BS)
    loss.backward()
    assert loss.dtype == torch.float32
    # Some thirty roundings of 2^-9 of either sign on the way to a loss of four.
    assert loss.item() == pytest.approx(exact_loss.item(), rel=2e-3)
    wanted = gradients(exact)
    for name, gradient in gradients(mixed).items():
        assert gradient.dtype == torch.float32
        assert alike(gradient, wanted[name]) > 0.99, name


@FAMILIES
@pytest.mark.parametrize("how", ["compute_dtype", "autocast"])
def test_bfloat16_sends_few_tokens_elsewhere(tiny_config: Build, family: str, how: str):
    config = tiny_config(family)
    ids_BS = random_ids(config, 2, 50)
    mixed = mixed_model(config, how)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        loss = whole_loss(mixed, ids_BS)
    assert loss.item() == pytest.approx(whole_loss(random_model(config), ids_BS).item(), rel=0.01)


def mixed_model(config: ModelConfig, how: str) -> Transformer:
    return random_model(config, compute_dtype="bfloat16" if how == "compute_dtype" else None)


def alike(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between two gradients."""
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)


@FAMILIES
def test_the_streams_dtype_is_the_compute_dtype(tiny_config: Build, family: str):
    config = tiny_config(family)
    ids_BS = random_ids(config, 1, 10)
    mixed = random_model(config, compute_dtype="bfloat16")
    assert mixed(ids_BS).dtype == torch.bfloat16
    assert random_model(config, dtype="bfloat16")(ids_BS).dtype == torch.bfloat16
    assert random_model(config)(ids_BS).dtype == torch.float32
    assert random_model(config, dtype="float64")(ids_BS).dtype == torch.float64


@FAMILIES
def test_mixed_precision_equals_weights_rounded_to_bfloat16(tiny_config: Build, family: str):
    """Parameters are cast where they are used, the router's excepted: it computes in float32."""
    config = tiny_config(family)
    ids_BS = random_ids(config, 2, 20)
    mixed = random_model(config, compute_dtype="bfloat16")
    rounded = random_model(config, dtype="bfloat16")
    for name, tensor in mixed.state_dict().items():
        if "gate.weight" in name:
            tensor.copy_(tensor.bfloat16())
    assert torch.equal(mixed(ids_BS), rounded(ids_BS))


@FAMILIES
@pytest.mark.parametrize(("dtype", "compute_dtype"), [("bfloat16", None), ("float32", "bfloat16")])
def test_routing_is_float32_whatever_the_model_computes_in(
    tiny_config: Build, family: str, dtype: str, compute_dtype: str | None
):
    config = tiny_config(family)
    model = random_model(config, dtype=dtype, compute_dtype=compute_dtype)
    trace = RoutingTrace()
    whole_loss(model, random_ids(config, 2, 10), trace)
    for routing in trace.layers.values():
        assert routing.scores_TE.dtype == routing.weights_TK.dtype == torch.float32
        assert routing.ids_TK.dtype == routing.load_E.dtype == torch.int64
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32 or "bias" not in name
