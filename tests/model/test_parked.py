"""An embedding that stays on the CPU: the same rows, less on the device."""

from collections.abc import Callable

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.model.parked import ParkedEmbedding, check_parkable, park_embedding_

Config = Callable[..., ModelConfig]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_parked_embedding_gives_the_same_logits_and_gradients(
    family: str, tiny_config: Config
) -> None:
    config = tiny_config(family)
    ids_BS = random_ids(config, 2, 9)
    found = []
    for parked in (False, True):
        model = random_model(config)
        model.model.embed_tokens.requires_grad_(False)
        if parked:
            park_embedding_(model)
        model.loss(ids_BS, ids_BS.roll(-1, 1)).next_token.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([model(ids_BS).detach(), *grads])
    assert len(found[0]) == len(found[1])
    assert all(map(torch.equal, *found))


def test_a_parked_embedding_is_no_parameter_and_in_no_state(tiny_config: Config) -> None:
    model = random_model(tiny_config("v2")).requires_grad_(False)
    table = model.model.embed_tokens.weight
    park_embedding_(model)
    assert isinstance(model.model.embed_tokens, ParkedEmbedding)
    assert torch.equal(model.model.embed_tokens.weight, table)
    assert not any("embed_tokens" in name for name in model.state_dict())
    assert not any("embed_tokens" in name for name, _ in model.named_parameters())


def test_an_embedding_that_is_needed_on_the_device_is_not_parked(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"as its head \(tie_word_embeddings=true\); remove park"):
        check_parkable(tiny_config("v2", tie_word_embeddings=True))
    with pytest.raises(ConfigError, match="where it is to be trained; remove park_embedding, or"):
        park_embedding_(random_model(tiny_config("v2")))


@pytest.mark.gpu
def test_rows_of_a_parked_embedding_come_to_the_device_of_the_ids() -> None:
    table_VD = torch.arange(12.0).view(4, 3)
    ids_BS = torch.tensor([[3, 0]], device="cuda")
    rows_BSD = ParkedEmbedding(table_VD)(ids_BS)
    assert rows_BSD.device == ids_BS.device
    assert torch.equal(rows_BSD.cpu(), table_VD[[3, 0]][None])
