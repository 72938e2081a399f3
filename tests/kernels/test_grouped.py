"""The routed experts of a layer, whatever the load on each."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from kernels.agreement import DTYPES, Work, assert_agree, assert_only_asked, run
from torch import Tensor

from moesaic.kernels import grouped, reference
from moesaic.kernels.grouped import experts

N_EXPERTS = 12

Load = Callable[[int, int, torch.Generator], Tensor]


def even(tokens: int, chosen: int, generator: torch.Generator) -> Tensor:
    return choose(torch.ones(tokens, N_EXPERTS), chosen, generator)


def skewed(tokens: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Each expert half as likely as the one before."""
    return choose(0.5 ** torch.arange(N_EXPERTS).expand(tokens, -1), chosen, generator)


def every_third(tokens: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Most experts get nothing, the last one included."""
    used = torch.zeros(tokens, N_EXPERTS)
    used[:, ::3] = 1
    return choose(used, chosen, generator)


def one_takes_all(tokens: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Every token goes to expert 5; its other choices, if any, are even."""
    slots_TK = even(tokens, chosen, generator)
    slots_TK[(slots_TK != 5).all(dim=1), 0] = 5
    return slots_TK


def first_and_last(tokens: int, chosen: int, generator: torch.Generator) -> Tensor:
    """The first expert gets most tokens, the last one a few, the others none."""
    slots_TK = torch.zeros(tokens, chosen, dtype=torch.int64)
    slots_TK[: tokens // 9, 0] = N_EXPERTS - 1
    return slots_TK


def choose(likely: Tensor, chosen: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(likely, chosen, generator=generator)


LOADS = (even, skewed, every_third, one_takes_all, first_and_last)
SIZES = [  # tokens, hidden, expert width, experts per token
    (1, 16, 8, 1),
    (1, 8, 16, 4),
    (7, 16, 8, 3),
    (100, 10, 6, 2),
    (61, 17, 5, 3),
    (300, 64, 32, 4),
    (1500, 96, 48, 1),
]


def random_inputs(
    slots_TK: Tensor, hidden: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Hidden states, gate values, gate_up and down, every one asking for its gradient."""
    tokens, chosen = slots_TK.shape

    def random(scale: float, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    gate_dtype = torch.promote_types(dtype, torch.float32)
    return [
        random(1.0, tokens, hidden),
        random(0.5, tokens, chosen, dtype=gate_dtype),
        random(hidden**-0.5, N_EXPERTS, 2 * width, hidden),
        random(width**-0.5, N_EXPERTS, hidden, width),
    ]


def sent(form: Callable[..., Tensor], slots_TK: Tensor) -> Callable[..., Tensor]:
    """A form with its choice of experts fixed."""
    return lambda x_TD, weights_TK, gate_up, down: form(x_TD, slots_TK, weights_TK, gate_up, down)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_equals_reference(
    dtype: torch.dtype, load: Load, size: tuple[int, int, int, int], generator: torch.Generator
):
    tokens, hidden, width, chosen = size
    slots_TK = load(tokens, chosen, generator)
    inputs = random_inputs(slots_TK, hidden, width, dtype, generator)
    fast, exact = sent(experts, slots_TK), sent(reference.experts, slots_TK)
    assert_agree(fast, exact, inputs, generator, dtype)


@pytest.mark.parametrize("copied", [0, 1 << 20], ids=["one by one", "side by side"])
@pytest.mark.parametrize("size", [(0, 16, 8, 3), *SIZES[:3]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_pairs_without_gradients_equal_the_reference(
    dtype: torch.dtype,
    size: tuple[int, int, int, int],
    copied: int,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(grouped, "_COPIED", copied)
    tokens, hidden, width, chosen = size
    slots_TK = even(tokens, chosen, generator) if tokens else torch.zeros(0, chosen).long()
    inputs = [x.detach() for x in random_inputs(slots_TK, hidden, width, dtype, generator)]
    fast, exact = sent(experts, slots_TK), sent(reference.experts, slots_TK)
    with torch.no_grad():
        assert_agree(fast, exact, inputs, generator, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tokens_give_no_result_and_no_gradient(dtype: torch.dtype, generator: torch.Generator):
    slots_TK = torch.zeros(0, 2, dtype=torch.int64)
    inputs = random_inputs(slots_TK, 16, 8, dtype, generator)
    result = run(sent(experts, slots_TK), inputs, torch.zeros(0, 16))
    assert result.value.shape == (0, 16)
    assert not any(gradient.any() for gradient in result.gradients if gradient is not None)


def test_a_single_expert_is_a_feed_forward(generator: torch.Generator):
    x_TD, weights_TK, gate_up, down = random_inputs(
        torch.zeros(20, 1), 16, 8, torch.float64, generator
    )
    slots_TK = torch.zeros(20, 1, dtype=torch.int64)
    gate, up = (x_TD @ gate_up[0].T).chunk(2, dim=-1)
    want = (torch.nn.functional.silu(gate) * up) @ down[0].T * weights_TK
    got = experts(x_TD, slots_TK, weights_TK, gate_up[:1], down[:1])
    torch.testing.assert_close(got, want)


def test_float32_stacks_serve_bfloat16_activations(generator: torch.Generator):
    slots_TK = even(40, 3, generator)
    x_TD, *_ = random_inputs(slots_TK, 32, 16, torch.bfloat16, generator)
    _, *rest = random_inputs(slots_TK, 32, 16, torch.float32, generator)
    fast, exact = sent(experts, slots_TK), sent(reference.experts, slots_TK)
    assert_agree(fast, exact, [x_TD, *rest], generator, torch.bfloat16)


def test_gradients_are_the_derivatives(generator: torch.Generator):
    slots_TK = skewed(5, 2, generator)
    inputs = random_inputs(slots_TK, 4, 3, torch.float64, generator)
    assert torch.autograd.gradcheck(sent(experts, slots_TK), inputs)


def test_a_second_derivative_is_refused_not_wrong(generator: torch.Generator):
    slots_TK = even(5, 2, generator)
    inputs = random_inputs(slots_TK, 8, 4, torch.float64, generator)
    out = sent(experts, slots_TK)(*inputs).square().sum()
    (first,) = torch.autograd.grad(out, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("trained", [*product((True, False), repeat=4)], ids=str)
def test_only_the_gradients_asked_for_are_given(
    trained: tuple[bool, ...], generator: torch.Generator
):
    slots_TK = skewed(50, 3, generator)
    inputs = random_inputs(slots_TK, 16, 8, torch.float32, generator)
    upstream = torch.randn(50, 16, generator=generator)
    whole = run(sent(experts, slots_TK), inputs, upstream)
    chosen = [x.detach().requires_grad_(asked) for x, asked in zip(inputs, trained, strict=True)]
    assert_only_asked(run(sent(experts, slots_TK), chosen, upstream), whole)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
def test_frozen_stacks_cost_no_products(load: Load, generator: torch.Generator):
    slots_TK = load(400, 2, generator)
    inputs = random_inputs(slots_TK, 64, 32, torch.float32, generator)
    frozen = [x.detach().requires_grad_(i < 2) for i, x in enumerate(inputs)]

    def backward(leaves: list[Tensor]) -> int:
        out = sent(experts, slots_TK)(*leaves).sum()
        with Work() as work:
            out.backward()
        return work.products

    # Of six equal parts of the backward pass three are for the gradients of the stacks.
    assert backward(frozen) * 2 == backward(inputs)


def test_experts_without_tokens_get_a_gradient_of_zero(generator: torch.Generator):
    slots_TK = every_third(80, 2, generator)
    inputs = random_inputs(slots_TK, 16, 8, torch.float32, generator)
    result = run(sent(experts, slots_TK), inputs, torch.ones(80, 16))
    idle_e = torch.arange(N_EXPERTS) % 3 != 0
    for stack in result.gradients[2:]:
        assert stack is not None
        assert not stack[idle_e].any()
        assert stack[~idle_e].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
def test_a_pair_of_weight_zero_adds_nothing_anywhere(load: Load, generator: torch.Generator):
    """That is how a dropped pair is told to the experts."""
    slots_TK = load(90, 2, generator)
    x_TD, weights_TK, gate_up, down = random_inputs(slots_TK, 16, 8, torch.float64, generator)
    with torch.no_grad():
        weights_TK[:, 1] = 0
    upstream = torch.randn(90, 16, generator=generator, dtype=torch.float64)
    both = run(sent(experts, slots_TK), [x_TD, weights_TK, gate_up, down], upstream)
    first = [x_TD, weights_TK[:, :1], gate_up, down]
    one = run(
        sent(experts, slots_TK[:, :1]), [x.detach().requires_grad_() for x in first], upstream
    )
    torch.testing.assert_close(both.value, one.value)
    for i in (0, 2, 3):
        torch.testing.assert_close(both.gradients[i], one.gradients[i])


def test_tokens_do_not_see_one_another(generator: torch.Generator):
    """Whatever rows the pairs are arranged in, and whatever is beside them."""
    slots_TK = skewed(70, 3, generator)
    x_TD, weights_TK, gate_up, down = random_inputs(slots_TK, 16, 8, torch.float64, generator)
    together = experts(x_TD, slots_TK, weights_TK, gate_up, down)
    for part in (slice(0, 1), slice(1, 30), slice(30, 70)):
        alone = experts(x_TD[part], slots_TK[part], weights_TK[part], gate_up, down)
        torch.testing.assert_close(alone, together[part])


def test_an_infinite_token_spoils_no_other_tokens_result(generator: torch.Generator):
    slots_TK = skewed(70, 3, generator)
    x_TD, *rest = random_inputs(slots_TK, 16, 8, torch.float32, generator)
    spoilt_TD = x_TD.detach().clone()
    spoilt_TD[0] = float("inf")
    got = experts(spoilt_TD, slots_TK, *rest)
    torch.testing.assert_close(got[1:], experts(x_TD, slots_TK, *rest)[1:])


def test_a_zero_stride_gradient_is_accepted(generator: torch.Generator):
    slots_TK = even(30, 2, generator)
    inputs = random_inputs(slots_TK, 16, 8, torch.float32, generator)
    experts(inputs[0], slots_TK, *inputs[1:]).sum().backward()
    summed = [x.grad for x in inputs]
    dense = run(sent(experts, slots_TK), inputs, torch.ones(30, 16))
    for got, want in zip(summed, dense.gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_under_autocast_the_products_are_in_its_dtype(generator: torch.Generator):
    slots_TK = skewed(50, 3, generator)
    inputs = random_inputs(slots_TK, 16, 8, torch.float32, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_TD = experts(inputs[0], slots_TK, *inputs[1:])
    out_TD.sum().backward()
    cast = experts(inputs[0].bfloat16(), slots_TK, *inputs[1:])
    assert out_TD.dtype == torch.bfloat16
    assert torch.equal(out_TD, cast)
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_on_a_gpu_equals_reference(
    dtype: torch.dtype, load: Load, generator: torch.Generator
):
    for tokens, hidden, width, chosen in SIZES:
        if hidden % 8 or width % 8:
            continue  # the grouped matmul of a GPU takes rows of whole 16 bytes only
        slots_TK = load(tokens, chosen, generator)
        inputs = random_inputs(slots_TK, hidden, width, dtype, generator)
        inputs = [x.detach().cuda().requires_grad_() for x in inputs]
        slots_TK = slots_TK.cuda()
        fast, exact = sent(experts, slots_TK), sent(reference.experts, slots_TK)
        assert_agree(fast, exact, inputs, generator, dtype)
