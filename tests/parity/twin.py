"""The same model in transformers: same configuration, same weights."""

from typing import Any

import pytest
from torch import Tensor

from moesaic.config.published import published_config
from moesaic.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "deepseek_v2": transformers.DeepseekV2Config,
    "deepseek_v3": transformers.DeepseekV3Config,
}


def transformers_twin(model: Transformer) -> Any:
    """A transformers model that holds copies of the weights, prediction modules left out."""
    published = published_config(model.config, "float32")
    architecture = published.pop("architectures")[0]
    config = CONFIGS[published.pop("model_type")](**published)
    twin = getattr(transformers, architecture)(config).float()
    twin.set_attn_implementation("eager")
    twin.set_experts_implementation("eager")
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not is_of_prediction_module(model, name)
    }
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state, strict=True)
    return twin


def is_of_prediction_module(model: Transformer, name: str) -> bool:
    """Whether a tensor lies after the last layer."""
    parts = name.split(".")
    return parts[1] == "layers" and int(parts[2]) >= model.config.num_hidden_layers


def twin_gradients(twin: Any) -> dict[str, Tensor]:
    """Gradients by name; a tied head counts once."""
    return {name: parameter.grad for name, parameter in twin.named_parameters()}
