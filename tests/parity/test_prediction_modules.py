"""Multi-token prediction equals that of transformers: the same weights, chained to depth three."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import gradients, random_ids, random_model
from parity.twin import is_of_prediction_module, transformers_twin
from torch import Tensor
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

DEPTHS = 3


def twin_modules(model: Transformer, twin: Any) -> Any:
    """The prediction modules in transformers, with copies of the weights."""
    twin.config.num_mtp_layers = model.config.num_nextn_predict_layers
    modules = transformers.modeling_layers.MtpModel(twin, model.config.num_nextn_predict_layers)
    modules.set_attn_implementation("eager")
    modules.set_experts_implementation("eager")
    state = {
        their_name(name, model.config.num_hidden_layers): tensor
        for name, tensor in model.state_dict().items()
        if is_of_prediction_module(model, name)
    }
    missing, unexpected = modules.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"embed_tokens.weight", "shared_head.weight"}
    return modules


def their_name(name: str, depth: int) -> str:
    """What transformers calls a tensor of a published prediction module."""
    _, _, layer, rest = name.split(".", maxsplit=3)
    rest = rest.replace("shared_head.norm.", "post_norm.")
    own = rest.split(".")[0] in ("enorm", "hnorm", "eh_proj", "post_norm")
    return f"layers.{int(layer) - depth}.{'' if own else 'mtp_block.'}{rest}"


def their_losses(twin: Any, modules: Any, ids_BS: Tensor, labels_BS: Tensor) -> list[Tensor]:
    """The summed losses of the model and of every depth, each over the positions it has."""
    length = ids_BS.shape[1]
    out = twin(ids_BS, use_cache=False, output_hidden_states=True)
    hidden_BSD = out.hidden_states[-1]
    losses = [F.cross_entropy(out.logits.flatten(0, 1), labels_BS.flatten(), reduction="sum")]
    for depth in range(1, DEPTHS + 1):
        kept = length - depth
        hidden_BSD = modules.forward_layer(
            depth - 1,
            hidden_BSD[:, :kept],
            torch.arange(depth, length)[None],
            None,
            input_ids=ids_BS[:, depth:],
        )
        logits = modules.shared_head(hidden_BSD).flatten(0, 1)
        losses.append(F.cross_entropy(logits, labels_BS[:, depth:].flatten(), reduction="sum"))
    return losses


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_losses_and_gradients_of_every_depth_equal_transformers(
    tiny_config: Callable[..., ModelConfig], tied: bool
):
    config = tiny_config(
        "v3",
        num_nextn_predict_layers=DEPTHS,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = random_model(config)
    twin = transformers_twin(model)
    modules = twin_modules(model, twin)
    ids_BS, labels_BS = random_ids(config, 2, 24), random_ids(config, 2, 24, seed=1)

    sums = model.loss(ids_BS, labels_BS)
    ours = [sums.next_token, *sums.mtp]
    theirs = their_losses(twin, modules, ids_BS, labels_BS)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)

    torch.stack(ours).sum().backward()
    torch.stack(theirs).sum().backward()
    found = gradients(model)
    for name, gradient in found.items():
        if is_of_prediction_module(model, name):
            their = modules.get_parameter(their_name(name, config.num_hidden_layers)).grad
        else:
            their = twin.get_parameter(name).grad
        error = (gradient - their).abs().max() / their.abs().max()
        assert error <= 2e-5, name  # a gradient passes up to six layers in float32
    assert len(found) == len(list(model.parameters()))
