"""Both ways through a model count the same tokens of every expert."""

from collections.abc import Callable

import pytest
import torch
from jobs import job, pool_of, prompts, tokens
from models import random_model

from moesaic.config.model import ModelConfig
from moesaic.config.serve import ServeConfig
from moesaic.infer.batching import BatchEngine
from moesaic.infer.decoder import TorchDecoder, build_decoder
from moesaic.infer.expert_load import ExpertLoad
from moesaic.model.trace import RoutingTrace


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_loads_are_those_of_one_pass_over_the_text(
    tiny_config: Callable[..., ModelConfig], family: str
):
    model = random_model(tiny_config(family, vocab_size=300, eos_token_id=None))
    [row] = prompts(1, seed=5)
    for build in (build_decoder, TorchDecoder):
        load = ExpertLoad(model.config)
        decoder = build(model.requires_grad_(False), pool_of(model), load=load)
        config = ServeConfig(prefill_tokens=20, speculate="never")
        with BatchEngine(decoder, None, config, load) as engine:
            drawn = tokens(engine.submit(job(row, max_new_tokens=9, temperature=0)))
            found = engine.stats().load
        trace = RoutingTrace()
        with torch.no_grad():
            model(torch.tensor([row + drawn[:-1]]), trace=trace)
        assert [each.layer for each in found] == [1, 2]
        for each in found:
            load_E = trace.layers[each.layer].load_E
            assert each.pairs == int(load_E.sum())
            assert each.imbalance == pytest.approx(float(load_E.max() / load_E.float().mean()))
            assert load_E[each.hottest] == load_E.max()
