"""llama.cpp computes from an exported file what we compute from the folder."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import random_ids, random_model

from moesaic.checkpoint.gguf import Form, write_gguf
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.generate import generate

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.parity

_WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
_LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
_GREEDY = {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
_V2 = {**_LATENT, **_GREEDY}
_YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
_NO_EXPERTS = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "n_group")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("v1", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "v1, longer": ("v1", {"rope_scaling": _YARN, "routed_scaling_factor": 2.0}),
    "v2": ("v2", _V2),
    "v2, pairs half apart": ("v2", {**_V2, "rope_interleave": False, "q_lora_rank": 32}),
    "v2, other lengths": ("v2", {**_V2, "rope_scaling": {**_YARN, "mscale": 0.7}}),
    "v2 of 27 layers": ("v2", {**_V2, "num_hidden_layers": 27}),
    "v3": ("v3", {**_LATENT, "q_lora_rank": 32, "tie_word_embeddings": True}),
    "v3, one group": ("v3", {**_LATENT, "n_group": 1, "topk_group": 1, "rope_scaling": None}),
    "dense": ("v2", {**_V2, "moe_intermediate_size": None, **dict.fromkeys(_NO_EXPERTS)}),
}
TEXT = "In 1984, naïve señor Li (李雷) paid $12.50\n\n  for 3½ teas; «hm»\tdid he? 東京へ 🙂 can't!"


@contextmanager
def exported(folder: Path, form: Form, tokenizer: Tokenizer | None = None) -> Iterator[Any]:
    """llama.cpp with the exported checkpoint; its cache is in float32."""
    out = folder.with_suffix(f".{form}.gguf")
    write_gguf(Reader(folder), out, form, tokenizer, None, lambda n: None)
    with closing(
        llama_cpp.Llama(
            str(out), n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0
        )
    ) as there:
        yield there


def differences(folder: Path, form: Form, config: ModelConfig) -> np.ndarray:
    """Of all logits of some tokens."""
    model = random_model(config)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.bfloat16())  # so that bf16 holds the same weights
    save(folder, config, model.state_dict(), "bfloat16")
    ids = random_ids(config, 1, 48)
    with torch.no_grad():
        ours = model(ids)[0].float().numpy()
    with exported(folder, form) as there:
        there.eval(ids[0].tolist())
        return np.abs(ours - np.array(there.scores[: ids.shape[1]]))


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_has_our_logits(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], name: str
) -> None:
    family, changes = MODELS[name]
    config = tiny_config(family, **{**_WIDE, **changes})
    assert differences(tmp_path / "model", "f32", config).max() < 1e-4  # in float32 on both sides


@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_llama_cpp_has_nearly_our_logits_in_fewer_bits(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], name: str, form: Form
) -> None:
    family, changes = MODELS[name]
    config = tiny_config(family, **{**_WIDE, **changes})
    found = differences(tmp_path / "model", form, config)
    # it rounds activations too, and where two experts nearly tie a token may get the other one;
    # logits are 0.8 from their mean
    most = {"f16": 2e-3, "bf16": 0.02, "q8_0": 0.03, "q4_0": 0.4}[form]
    assert np.median(found) < most


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_llama_cpp_writes_our_text(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], family: str
) -> None:
    changes = {"v1": {}, "v2": _V2, "v3": _LATENT}[family]
    config = tiny_config(family, **{**_WIDE, **changes}, vocab_size=400)
    tokenizer = train_bpe([TEXT * 3, "to be or not to be, that is the question. " * 20], 400)
    save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
    tokenizer.save(tmp_path / "model")
    tokenizer = Tokenizer.load(tmp_path / "model")
    ours = generate(tmp_path / "model", TEXT, temperature=0, max_new_tokens=24)[0]
    with exported(tmp_path / "model", "f32", tokenizer) as there:
        ids = there.tokenize(TEXT.encode(), add_bos=True)
        assert tuple(ids) == ours.prompt_ids
        assert there.token_eos() == tokenizer.eos_id
        drawn: list[int] = []
        while len(drawn) < len(ours.ids):
            there.eval([*ids, *drawn][there.n_tokens :])
            drawn.append(int(np.argmax(there.scores[there.n_tokens - 1])))
        assert tuple(drawn) == ours.ids
        assert there.detokenize(drawn).decode(errors="replace") == tokenizer.decode(drawn)
