"""The summed cross-entropy of a large vocabulary, without all its logits."""

import pytest
import torch
from kernels.agreement import DTYPES, Work, assert_agree, assert_only_asked, run
from memory_meter import most_allocated
from torch import Tensor

from moesaic.kernels import reference
from moesaic.kernels.cross_entropy import cross_entropy_sum
from moesaic.kernels.native import rows

SIZES = [(1, 4, 3), (5, 16, 40), (300, 24, 97), (1000, 8, 50)]
"""Tokens, hidden size, vocabulary."""
WIDE = (300, 4, 2**17)
"""More logits than are ever to exist at once."""
MOST_LOGITS = 2**25
"""How many may: 128 MiB in float32."""


def random_inputs(
    size: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Hidden states and the head."""
    tokens, hidden, vocabulary = size

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    return [random(tokens, hidden), random(vocabulary, hidden)]


def random_labels(
    size: tuple[int, int, int], generator: torch.Generator, ignored: float = 0.0
) -> Tensor:
    labels_T = torch.randint(0, size[2], (size[0],), generator=generator)
    labels_T[torch.rand(size[0], generator=generator) < ignored] = reference.IGNORED
    return labels_T


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_sum_equals_reference(
    dtype: torch.dtype, size: tuple[int, int, int], ignored: float, generator: torch.Generator
):
    labels_T = random_labels(size, generator, ignored)
    assert_agree(
        lambda hidden_TD, weight_VD: cross_entropy_sum(hidden_TD, weight_VD, labels_T),
        lambda hidden_TD, weight_VD: reference.cross_entropy_sum(hidden_TD, weight_VD, labels_T),
        random_inputs(size, dtype, generator),
        generator,
        dtype,
    )


def test_a_float32_head_serves_bfloat16_hidden_states(generator: torch.Generator):
    size = (60, 16, 40)
    labels_T = random_labels(size, generator)
    hidden_TD, _ = random_inputs(size, torch.bfloat16, generator)
    _, weight_VD = random_inputs(size, torch.float32, generator)
    assert_agree(
        lambda hidden_TD, weight_VD: cross_entropy_sum(hidden_TD, weight_VD, labels_T),
        lambda hidden_TD, weight_VD: reference.cross_entropy_sum(hidden_TD, weight_VD, labels_T),
        [hidden_TD, weight_VD],
        generator,
        torch.bfloat16,
    )


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_are_the_derivatives(index: int, generator: torch.Generator):
    """Along a random direction; the framework's own check takes a gradient twice."""
    labels_T = random_labels((6, 4, 9), generator, ignored=0.3)
    inputs = random_inputs((6, 4, 9), torch.float64, generator)
    step = torch.randn(inputs[index].shape, generator=generator, dtype=torch.float64) * 1e-5

    def loss(sign: int) -> Tensor:
        moved = [x.detach() for x in inputs]
        moved[index] = moved[index] + sign * step
        return cross_entropy_sum(moved[0], moved[1], labels_T)

    cross_entropy_sum(inputs[0], inputs[1], labels_T).backward()
    gradient = inputs[index].grad
    assert gradient is not None
    torch.testing.assert_close((gradient * step).sum(), (loss(1) - loss(-1)) / 2)


def test_many_tokens_at_once_cost_what_few_at_a_time_do(generator: torch.Generator):
    """In value and gradients, whatever part of the logits is in memory at a time."""
    labels_T = random_labels(WIDE, generator, ignored=0.1)
    hidden_TD, weight_VD = random_inputs(WIDE, torch.float32, generator)
    with Work() as work:
        whole = cross_entropy_sum(hidden_TD, weight_VD, labels_T)
        whole.backward()
    assert work.largest <= MOST_LOGITS < WIDE[0] * WIDE[2]
    gradients = [hidden_TD.grad, weight_VD.grad]
    hidden_TD.grad = weight_VD.grad = None
    parts = []
    for start in range(0, WIDE[0], 150):
        some = slice(start, start + 150)
        part = cross_entropy_sum(hidden_TD[some], weight_VD, labels_T[some])
        part.backward()
        parts.append(part.detach())
    torch.testing.assert_close(whole.detach(), torch.stack(parts).sum())
    torch.testing.assert_close(gradients, [hidden_TD.grad, weight_VD.grad], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 12])
def test_nothing_learned_is_a_loss_of_zero_with_zero_gradients(
    tokens: int, dtype: torch.dtype, generator: torch.Generator
):
    labels_T = torch.full((tokens,), reference.IGNORED)
    inputs = random_inputs((tokens, 8, 20), dtype, generator)
    result = run(lambda h, w: cross_entropy_sum(h, w, labels_T), inputs, torch.ones(()))
    assert result.value == 0
    assert [x.shape for x in inputs] == [g.shape for g in result.gradients if g is not None]
    assert not any(gradient.any() for gradient in result.gradients if gradient is not None)


def test_ignored_positions_get_no_gradient_and_cost_no_products(generator: torch.Generator):
    labels_T = random_labels((400, 8, 50), generator, ignored=0.8)
    hidden_TD, weight_VD = random_inputs((400, 8, 50), torch.float32, generator)
    with Work() as work:
        cross_entropy_sum(hidden_TD, weight_VD, labels_T).backward()
    learned_T = labels_T != reference.IGNORED
    assert hidden_TD.grad is not None
    assert not hidden_TD.grad[~learned_T].any()
    assert hidden_TD.grad[learned_T].any(dim=1).all()
    assert work.products <= 3 * int(learned_T.sum()) * 8 * 50


def test_evaluation_computes_no_gradient(generator: torch.Generator):
    labels_T = random_labels((40, 8, 50), generator)
    inputs = random_inputs((40, 8, 50), torch.float32, generator)
    with torch.no_grad(), Work() as work:
        cross_entropy_sum(inputs[0], inputs[1], labels_T)
    assert work.products == 40 * 8 * 50


@pytest.mark.parametrize("trained", [(True, False), (False, True)], ids=str)
def test_only_the_gradients_asked_for_are_computed(
    trained: tuple[bool, bool], generator: torch.Generator
):
    """A frozen head, or a frozen model under a trained one."""
    labels_T = random_labels((40, 8, 50), generator)
    inputs = random_inputs((40, 8, 50), torch.float32, generator)
    whole = run(lambda h, w: cross_entropy_sum(h, w, labels_T), inputs, torch.ones(()))
    chosen = [x.detach().requires_grad_(asked) for x, asked in zip(inputs, trained, strict=True)]
    with Work() as work:
        part = run(lambda h, w: cross_entropy_sum(h, w, labels_T), chosen, torch.ones(()))
    assert_only_asked(part, whole)
    assert work.products == 2 * 40 * 8 * 50


def test_a_confident_wrong_prediction_is_a_large_finite_loss():
    hidden_TD = torch.tensor([[1e4, 0.0]])
    loss = cross_entropy_sum(hidden_TD, torch.eye(2), torch.tensor([1]))
    assert loss.item() == pytest.approx(1e4)


def test_taking_the_gradient_twice_is_refused(generator: torch.Generator):
    hidden_TD, weight_VD = random_inputs((4, 8, 20), torch.float32, generator)
    loss = cross_entropy_sum(hidden_TD, weight_VD, random_labels((4, 8, 20), generator))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="is gone; compute the loss again"):
        loss.backward()


def test_under_autocast_the_products_are_in_its_dtype(generator: torch.Generator):
    labels_T = random_labels((40, 8, 50), generator)
    hidden_TD, weight_VD = random_inputs((40, 8, 50), torch.float32, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_sum(hidden_TD, weight_VD, labels_T)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy_sum(hidden_TD.bfloat16(), weight_VD, labels_T))
    for x in (hidden_TD, weight_VD):
        assert x.grad is not None
        assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_the_logits_of_one_chunk_are_gone_before_the_next_are_made(
    trained: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    """Two float32 tensors of a chunk are the most there is, however many chunks there are; where
    one sweep does it all, the logits and little else."""
    labels_T = random_labels((1024, 8, 32768), generator)
    hidden_TD, weight_VD = random_inputs((1024, 8, 32768), torch.bfloat16, generator)
    weight_VD.requires_grad_(trained)
    chunk = 4 * 256 * 32768
    if rows.serve(hidden_TD):
        most = most_allocated(lambda: cross_entropy_sum(hidden_TD, weight_VD, labels_T))
        assert chunk / 2 < most < 0.75 * chunk
    monkeypatch.setattr(rows, "serve", lambda *tensors: False)
    most = most_allocated(lambda: cross_entropy_sum(hidden_TD, weight_VD, labels_T))
    assert 2 * chunk < most < 2.25 * chunk
