"""Compiled decoders beside others, after their model is gone, and where something is too large."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor

from moesaic.config.presets import get_preset
from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import TorchDecoder, build_decoder
from moesaic.infer.describe import most_tokens
from moesaic.infer.native import NativeDecoder
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Form

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")


def decoder_of(preset: str, form: Form = "weights", seed: int = 0) -> NativeDecoder:
    model = random_model(get_preset(preset), seed=seed).requires_grad_(False)
    return NativeDecoder(model, BlockPool(model.config, 16, block=8, dtype=torch.float32), form)


def tokens(decoder: NativeDecoder) -> list[int]:
    return random_ids(decoder.model.config, 30).tolist()


def logits(decoder: NativeDecoder, ids: Sequence[int]) -> Tensor:
    """One token after the other, from the beginning."""
    held, found = Held(decoder.pool), []
    for token in ids:
        held.make_room(1)
        found.append(decoder.step([token], [held])[0])
    held.release()
    return torch.cat(found)


@pytest.mark.parametrize("form", ["weights", "int4"])
def test_a_decoder_outlives_the_weights_of_its_model(form: Form):
    decoder = decoder_of("tiny-v3", form)
    ids = tokens(decoder)
    before = logits(decoder, ids)
    for parameter in decoder.model.parameters():
        parameter.data = torch.empty(0)
    other = [torch.full((n,), torch.nan) for n in range(1, 200_000, 10_000)]  # in their memory
    assert torch.equal(logits(decoder, ids), before)
    assert len(other) == 20


def test_decoders_in_several_threads_do_not_meet():
    decoders = [decoder_of("tiny-v2"), decoder_of("tiny-v3", "int8", 1), decoder_of("tiny-v1")]
    ids = [tokens(decoder) for decoder in decoders]
    alone = [*map(logits, decoders, ids)]
    with ThreadPoolExecutor(len(decoders)) as threads:
        for _ in range(3):
            together = threads.map(logits, decoders, ids)
            assert all(map(torch.equal, together, alone))


def test_a_text_longer_than_the_model_knows_positions_for_is_refused():
    config = get_preset("tiny-v2").changed(max_position_embeddings=12)
    model = random_model(config).requires_grad_(False)
    decoder = NativeDecoder(model, BlockPool(config, 4, block=8, dtype=torch.float32))
    held = Held(decoder.pool)
    held.make_room(14)
    decoder.step([1] * 12, [held] * 12)
    with pytest.raises(
        RequestError,
        match="a text of 13 tokens is longer than max_position_embeddings=12; shorten it",
    ):
        decoder.step([1], [held])
    assert held.length == 12


def test_a_cache_that_is_not_served_leaves_the_model_to_torch():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    pool = BlockPool(model.config, 4, dtype=torch.float16)
    with pytest.raises(RequestError, match=r"its cache is torch\.float16"):
        NativeDecoder(model, pool)
    assert isinstance(build_decoder(model, pool), TorchDecoder)


def test_a_pass_for_which_there_is_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    decoder = decoder_of("tiny-v2")
    held = Held(decoder.pool)
    held.make_room(2)
    monkeypatch.setattr(decoder, "_library", SimpleNamespace(moesaic_pass=lambda *_: 2))
    with pytest.raises(RequestError, match=r"too little memory for a pass of 2 tokens; ask for sh"):
        decoder.step([1, 2], [held] * 2)
    assert held.length == 0


def test_many_threads_and_heads_leave_room_for_fewer_tokens_in_a_pass(
    monkeypatch: pytest.MonkeyPatch,
):
    model = SimpleNamespace(config=get_preset("deepseek-v3"), moe_layers=dict)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert most_tokens(model, 256) == 256  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    # 128 heads with 512 sums and two numbers more, in float32 and for each thread, in 1 GiB
    assert most_tokens(model, 256) == 63  # pyright: ignore[reportArgumentType]


_FORKED = """
import os, sys
sys.path[:0] = ["tests", "."]
import torch
from infer.test_native_lifetime import decoder_of, logits, tokens
torch.set_num_threads(1)
decoder = decoder_of("tiny-v3", "int4")
ids = tokens(decoder)
before = logits(decoder, ids)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(logits(decoder, ids), before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
def test_a_forked_process_of_one_thread_decodes():
    """With more, the library of threads waits for those that were not forked, as torch does."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKED], timeout=120, check=False
    )
    assert ended.returncode == 0
