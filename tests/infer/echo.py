"""A model that says every token again."""

import torch
from models import random_model

from moesaic.config.model import ModelConfig
from moesaic.model.mtp import PredictionModule
from moesaic.model.transformer import Transformer


def echo(config: ModelConfig) -> Transformer:
    """A model whose layers add nothing: the likeliest next token is the one it was fed."""
    model = random_model(config).requires_grad_(False)
    model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            weight.zero_()
    model.head_weight.copy_(model.model.embed_tokens.weight)
    module = model.model.layers[config.num_hidden_layers]
    assert isinstance(module, PredictionModule)
    module.eh_proj.weight.zero_()
    module.eh_proj.weight[:, : config.hidden_size] = torch.eye(config.hidden_size)
    return model
