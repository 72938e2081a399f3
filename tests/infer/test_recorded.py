"""What a GPU repeats without its host: the passes themselves, and that nothing in them waits."""

from contextlib import nullcontext

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.presets import get_preset
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import Fed, GpuDecoder, TorchDecoder
from moesaic.infer.recorded import Passes, can_be_recorded
from moesaic.model.build import empty_model

FAMILIES = ["tiny-v1", "tiny-v2", "tiny-v3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_one_sequence_fed_together_are_fed_as_if_one_by_one(family: str):
    model = random_model(get_preset(family)).requires_grad_(False)
    pool = BlockPool(model.config, 8, block=8, dtype=torch.float32)
    ids = random_ids(model.config, 21)
    held = Held(pool)
    found = GpuDecoder(model, pool).feed([Fed(held, tuple(ids.tolist()), "all")])
    expected = model(ids.unsqueeze(0))[0]
    torch.testing.assert_close(found[0].logits_TV, expected, atol=3e-4, rtol=3e-4)


def test_what_fills_up_a_pass_changes_no_sequence():
    """Five tokens go in a pass of eight."""
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    pool = BlockPool(model.config, 8, block=8, dtype=torch.float32)
    other = Held(pool)
    other.make_room(8)
    before = [layer[other.blocks].clone() for layer in pool.layers]
    GpuDecoder(model, pool).feed([Fed(Held(pool), (1, 2, 3, 4, 5))])
    after = [layer[other.blocks] for layer in pool.layers]
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert pool.n_free == 6


def test_results_are_kept_when_a_pass_of_the_same_shape_follows():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    decoder = GpuDecoder(model, BlockPool(model.config, 8, dtype=torch.float32))
    held = Held(decoder.pool)
    [first] = decoder.feed([Fed(held, (1,))])
    kept = first.logits_TV.clone()
    decoder.feed([Fed(held, (2,))])
    torch.testing.assert_close(first.logits_TV, kept, atol=0, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("drafts", [False, True])
def test_nothing_in_a_pass_waits_for_the_device(
    family: str, drafts: bool, monkeypatch: pytest.MonkeyPatch
):
    """Tensors without values, which cannot be read by the host, stand for those of a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # they have none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    config = get_preset(family)
    if drafts and not config.num_nextn_predict_layers:
        pytest.skip("no prediction module")
    model = empty_model(config, "bfloat16", "meta").requires_grad_(False)
    pool = BlockPool(config, 8, device="meta")
    held = Held(pool)
    held.make_room(3)
    previous_TD = torch.zeros(3, config.hidden_size, device="meta") if drafts else None
    with torch.inference_mode():
        logits_TV, hidden_TD = Passes(model, pool).run([(held, (1, 2, 3))], previous_TD)
        assert logits_TV.shape == (4, config.vocab_size)
        with pytest.raises(RuntimeError, match="meta"):
            hidden_TD.sum().item()


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["tiny-v2", "tiny-v3"])
def test_a_recorded_pass_gives_what_the_framework_gives_call_by_call(family: str):
    model = random_model(get_preset(family)).to("cuda", torch.bfloat16).requires_grad_(False)
    assert can_be_recorded(model)
    decoders = GpuDecoder, TorchDecoder
    pools = [BlockPool(model.config, 16, device="cuda") for _ in decoders]
    pairs = [
        (decode(model, pool), Held(pool)) for decode, pool in zip(decoders, pools, strict=True)
    ]
    for token in random_ids(model.config, 12).tolist():
        got, want = (decoder.feed([Fed(held, (token,))])[0] for decoder, held in pairs)
        assert (got.logits_TV - want.logits_TV).norm() < 0.1 * want.logits_TV.norm()
