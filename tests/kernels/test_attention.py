"""Softmax attention over equal and unequal widths, whole sequences and cached ones."""

from collections.abc import Callable

import pytest
import torch
from kernels.agreement import DTYPES, assert_agree, assert_only_asked, run
from torch import Tensor

from moesaic.kernels import reference
from moesaic.kernels.attention import attention, shared_attention

SIZES = [  # sequences, heads, positions fed, positions visible
    (1, 1, 1, 1),
    (2, 3, 1, 20),
    (2, 3, 17, 17),
    (1, 2, 300, 300),
    (2, 2, 5, 40),
    (1, 2, 130, 200),
]
WIDTHS = [(16, 16), (24, 16), (8, 12), (7, 5)]
"""Of queries and keys, and of values."""

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_inputs(
    size: tuple[int, int, int, int],
    widths: tuple[int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> list[Tensor]:
    """Queries, keys and values, laid out as the layers hand them over: heads after positions."""
    sequences, heads, fed, held = size

    def random(positions: int, width: int) -> Tensor:
        shape = (sequences, positions, heads, width)
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).transpose(1, 2).requires_grad_()

    return [random(fed, widths[0]), random(held, widths[0]), random(held, widths[1])]


def of_documents(sequences: int, fed: int, held: int, generator: torch.Generator) -> Tensor:
    """Positions seen in rows of a few documents each, [B, 1, S, C]."""
    starts = torch.rand(sequences, held, generator=generator) < 0.1
    documents_BC = starts.cumsum(1)
    documents_BS = documents_BC[:, held - fed :]
    same = documents_BS[:, None, :, None] == documents_BC[:, None, None, :]
    return same & torch.ones(fed, held, dtype=torch.bool).tril(held - fed)


def scaled(form: Callable[..., Tensor], visible: Tensor | None, scale: float = 0.3) -> Form:
    """A form with its mask and scale fixed."""
    return lambda q, k, v: form(q, k, v, scale, visible)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_equals_reference(
    dtype: torch.dtype,
    size: tuple[int, int, int, int],
    widths: tuple[int, int],
    generator: torch.Generator,
):
    inputs = random_inputs(size, widths, dtype, generator)
    for visible in (None, of_documents(size[0], *size[2:], generator)):
        fast, exact = scaled(attention, visible), scaled(reference.attention, visible)
        assert_agree(fast, exact, inputs, generator, dtype)


@pytest.mark.parametrize("size", [(2, 2, 6, 6), (2, 2, 3, 6), (2, 2, 1, 6)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
def test_gradients_are_the_derivatives(
    masked: bool, size: tuple[int, int, int, int], generator: torch.Generator
):
    inputs = random_inputs(size, (6, 4), torch.float64, generator)
    visible = of_documents(size[0], *size[2:], generator) if masked else None
    assert torch.autograd.gradcheck(scaled(attention, visible), inputs)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_gradient_may_be_asked_for_alone(index: int, generator: torch.Generator):
    inputs = random_inputs((2, 2, 20, 20), (8, 6), torch.float32, generator)
    upstream = torch.randn(2, 2, 20, 6, generator=generator)
    whole = run(scaled(attention, None), inputs, upstream)
    alone = [x.detach().requires_grad_(i == index) for i, x in enumerate(inputs)]
    assert_only_asked(run(scaled(attention, None), alone, upstream), whole)


@pytest.mark.parametrize("fed", [1, 7, 50, 200])
def test_the_last_positions_fed_alone_attend_as_in_the_whole(fed: int, generator: torch.Generator):
    """With the keys and values of the positions before them in a cache."""
    q, k, v = random_inputs((2, 2, 200, 200), (12, 8), torch.float64, generator)
    whole = attention(q, k, v, 0.3, None)
    torch.testing.assert_close(attention(q[:, :, -fed:], k, v, 0.3, None), whole[:, :, -fed:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fed", [7, 140, 190])
def test_the_last_positions_fed_alone_see_their_documents_only(
    fed: int, dtype: torch.dtype, generator: torch.Generator
):
    q, k, v = random_inputs((2, 2, 300, 300), (12, 8), dtype, generator)
    documents = torch.arange(300)[None] >= torch.tensor([[0], [150]])
    same = documents[:, None, :, None] == documents[:, None, None, :]
    visible = same & torch.ones(300, 300, dtype=torch.bool).tril()
    last = attention(q[:, :, -fed:], k, v, 0.3, visible[:, :, -fed:])
    torch.testing.assert_close(last, reference.attention(q, k, v, 0.3, visible)[:, :, -fed:])


def test_documents_in_one_row_attend_as_if_alone(generator: torch.Generator):
    q, k, v = random_inputs((1, 2, 180, 180), (12, 8), torch.float64, generator)
    documents = torch.arange(180)[None] >= 70
    same = documents[:, None, :, None] == documents[:, None, None, :]
    packed = attention(q, k, v, 0.3, same & torch.ones(180, 180, dtype=torch.bool).tril())
    for part in (slice(0, 70), slice(70, 180)):
        alone = attention(q[:, :, part], k[:, :, part], v[:, :, part], 0.3, None)
        torch.testing.assert_close(packed[:, :, part], alone)


def test_later_positions_change_nothing(generator: torch.Generator):
    q, k, v = random_inputs((1, 2, 200, 200), (12, 8), torch.float64, generator)
    before = attention(q, k, v, 0.3, None)[:, :, :150]
    with torch.no_grad():
        k[:, :, 150:], v[:, :, 150:] = 1e4, 1e4
    assert torch.equal(attention(q, k, v, 0.3, None)[:, :, :150], before)


def test_scores_too_large_to_exponentiate_are_no_trouble(generator: torch.Generator):
    inputs = random_inputs((1, 2, 40, 40), (12, 8), torch.float32, generator)
    fast, exact = scaled(attention, None, 300.0), scaled(reference.attention, None, 300.0)
    got, want = fast(*inputs), exact(*(x.double() for x in inputs))
    # Scores near 10^4 keep three decimals in float32; the softmax of such is all or nothing.
    torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("size", [*SIZES, (2, 4, 40, 60)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_keys_and_values_shared_by_all_heads_give_the_same(
    dtype: torch.dtype,
    size: tuple[int, int, int, int],
    packed: bool,
    generator: torch.Generator,
):
    """As the absorbed form of latent attention hands over: the values are a part of the keys."""
    q, k, _ = random_inputs(size, (12, 8), dtype, generator)
    shared = k[:, 0].detach().requires_grad_()
    visible = of_documents(size[0], *size[2:], generator) if packed else None

    def fast(q: Tensor, k: Tensor) -> Tensor:
        return shared_attention(q, k, k[..., :8], 0.3, visible)

    def exact(q: Tensor, k: Tensor) -> Tensor:
        keys = k.unsqueeze(1).expand(-1, size[1], -1, -1)
        return reference.attention(q, keys, keys[..., :8], 0.3, visible)

    assert_agree(fast, exact, [q, shared], generator, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_on_a_gpu_equals_reference(
    dtype: torch.dtype, widths: tuple[int, int], generator: torch.Generator
):
    for size in SIZES:
        inputs = random_inputs(size, widths, dtype, generator)
        inputs = [x.detach().cuda().requires_grad_() for x in inputs]
        for visible in (None, of_documents(size[0], *size[2:], generator).cuda()):
            fast, exact = scaled(attention, visible), scaled(reference.attention, visible)
            assert_agree(fast, exact, inputs, generator, dtype)
