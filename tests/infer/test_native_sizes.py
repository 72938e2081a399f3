"""The compiled decoder serves models of any sizes, and reads nothing outside of what they hold.

Everything that it is told of lies beside memory that nobody may touch, on one side or the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pytest
import torch
from kernels.guarded import Side, guard_, guarded
from models import random_ids, random_model
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.held import HeldExperts, HeldLinear
from moesaic.infer.native import NativeDecoder
from moesaic.infer.stored import put_
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Kind, Rows
from moesaic.kernels.quantise import quantise
from moesaic.model.linear import Linear
from moesaic.model.transformer import Transformer

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

FORMS = ("float32", "bfloat16", "int8", "int4", "float8")
Form = Literal["float32", "bfloat16", "int8", "int4", "float8"]
SIDES: tuple[Side, ...] = ("before", "after")
Any_ = TypeVar("Any_")


@dataclass
class Draw:
    """Draws one of several, the same ones for a seed."""

    seed: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, *several: Any_) -> Any_:
        return several[int(torch.randint(len(several), (), generator=self.generator))]


def drawn_config(draw: Draw) -> ModelConfig:
    """A model whose widths are no whole vectors, groups or blocks, or just these, or one more."""
    family = draw("deepseek", "deepseek_v2", "deepseek_v3")
    heads = draw(1, 2, 3, 4, 8)
    drawn: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw(17, 64, 129, 200),
        "hidden_size": draw(8, 17, 31, 40, 63, 65, 130),
        "num_hidden_layers": draw(1, 2, 3),
        "intermediate_size": draw(1, 3, 24, 33, 65),
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "first_k_dense_replace": draw(0, 1),
        "tie_word_embeddings": draw(False, True),
    }
    if family == "deepseek":
        drawn["hidden_size"] = heads * draw(2, 6, 16, 34)
        drawn["num_key_value_heads"] = draw(*(n for n in range(1, heads + 1) if heads % n == 0))
    else:
        drawn |= {
            "kv_lora_rank": draw(1, 8, 31, 33, 64, 70),
            "q_lora_rank": draw(None, 5, 33),
            "qk_nope_head_dim": draw(1, 3, 16, 17),
            "qk_rope_head_dim": draw(2, 6, 32, 34),
            "v_head_dim": draw(1, 5, 16, 33),
        }
    if experts := draw(0, 2, 5, 12, 33):
        drawn |= drawn_experts(draw, family, experts)
    return ModelConfig.parse(drawn, "drawn")


def drawn_experts(draw: Draw, family: str, experts: int) -> dict[str, Any]:
    """Settings of so many experts, of which a token chooses some, perhaps in groups."""
    drawn: dict[str, Any] = {
        "n_routed_experts": experts,
        "num_experts_per_tok": draw(*range(1, min(experts, 6) + 1)),
        "moe_intermediate_size": draw(1, 8, 15, 33, 65),
        "n_shared_experts": draw(None, 1, 2),
        "norm_topk_prob": draw(False, True),
    }
    if family != "deepseek":
        groups = draw(*(n for n in range(1, experts + 1) if experts % n == 0))
        least = -(-drawn["num_experts_per_tok"] // (experts // groups))
        kept = draw(*range(least, groups + 1))
        method = "noaux_tc" if family == "deepseek_v3" else "group_limited_greedy"
        drawn |= {"n_group": groups, "topk_group": kept, "topk_method": method}
    return drawn


def rows_of(weight: Tensor, kind: Kind) -> Rows:
    """A weight as codes; it becomes what they stand for."""
    flat = weight.detach().flatten(0, -2)
    rows = Rows.empty(len(flat), flat.shape[1], kind)
    put_(rows, quantise(flat) if kind == "float8" else flat, "a weight")
    flat.copy_(rows.floats())
    return rows


def held_as(kind: Kind, model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """What takes the places of modules whose weights are held as codes."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and not name.endswith("kv_b_proj"):
            yield name, HeldLinear(rows_of(module.weight, kind))
    for layer, moe in model.moe_layers().items():
        stacks = moe.experts.gate_up_proj, moe.experts.down_proj
        rows_in, rows_out = (rows_of(stack, kind) for stack in stacks)
        yield f"model.layers.{layer}.mlp.experts", HeldExperts(layer, rows_in, rows_out)


def texts(draw: Draw, config: ModelConfig) -> list[list[int]]:
    lengths = [draw(1, 2, 7, 16, 33, 40) for _ in range(draw(1, 2, 4, 9))]
    return [random_ids(config, n, seed=n + i).tolist() for i, n in enumerate(lengths)]


def fed_in_pieces(draw: Draw, decoder: NativeDecoder, rows: list[list[int]]) -> list[Tensor]:
    """Logits of every token, fed alone, some at a time, and beside those of other texts."""
    held = [Held(decoder.pool) for _ in rows]
    found: list[list[Tensor]] = [[] for _ in rows]
    while any(one.length < len(row) for one, row in zip(held, rows, strict=True)):
        ids, texts = [], []
        for i, (one, row) in enumerate(zip(held, rows, strict=True)):
            part = row[one.length : one.length + draw(0, 1, 1, 1, 2, 5, 13)]
            one.make_room(len(part))
            ids, texts = ids + part, texts + [i] * len(part)
        if ids:
            logits, _ = decoder.step(ids, [held[i] for i in texts])
            for i, one in zip(texts, logits, strict=True):
                found[i].append(one)
    return [torch.stack(each) for each in found]


def check(seed: int, form: Form) -> None:
    draw = Draw(seed)
    config = drawn_config(draw)
    model = random_model(config, seed=seed).requires_grad_(False)
    rows = texts(draw, config)
    side: Side = draw(*SIDES)
    if form == "bfloat16":
        model.bfloat16()
    held = [*held_as(form, model)] if form in ("int8", "int4", "float8") else []
    wide = random_model(config).requires_grad_(False)
    wide.load_state_dict(model.state_dict())
    for name, module in held:
        model.set_submodule(name, module)
    guard_(model, side)
    block = draw(1, 2, 7, 8, 32)
    n_blocks = sum(-(-len(row) // block) for row in rows)
    pool = BlockPool(config, n_blocks, block, dtype=torch.float32)
    pool.layers = tuple(guarded(layer, side) for layer in pool.layers)
    got = torch.cat(fed_in_pieces(draw, NativeDecoder(model, pool), rows))
    want = torch.cat([wide(torch.tensor([row]))[0] for row in rows])
    apart = (got - want).norm(dim=-1) / want.norm(dim=-1)
    # What is rounded may make a token choose another expert, where two are all but equal.
    assert apart.median() < (1e-4 if form == "float32" else 0.2), (form, config)
    assert form != "float32" or apart.max() < 2e-3, config


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads compute, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
def test_models_of_any_sizes_give_what_they_give_in_torch(
    form: Form, threads: Callable[[int], None]
):
    for seed in range(6):
        threads(2 if seed == 0 else 1)  # they wait for each other where cores are busy
        check(seed, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_many_more_models_of_any_sizes_do(form: Form, threads: Callable[[int], None]):
    for seed in range(1000, 1060):
        threads(1 + seed % 3)
        check(seed, form)
