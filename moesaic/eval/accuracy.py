"""How far a quantised checkpoint is from the one it was made of: its answers and its weights.

B sequences   S positions fed   T tokens   D hidden   V vocabulary
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.data.batch import Batch
from moesaic.eval.statistics import Estimate
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import tensors

_Z = 1.959964
"""Normal quantile of 97.5 %."""
_LOGITS_AT_ONCE = 2**24
"""Elements of the two distributions that are there at a time."""

OnPart = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Told:
    """What a model made of some rows, so that it need not be held beside the next one."""

    hidden: tuple[Tensor, ...]
    """What the head turns into logits, [tokens, D] of each row, for the tokens that are learned."""
    labels: tuple[Tensor, ...]
    """Their next tokens."""
    head_VD: Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """A model's next-token distributions beside those of the original. Errors are over rows."""

    tokens: int
    rows: int
    divergence: Estimate
    """KL(original ‖ quantised) per token, in nats."""
    same_choice: Estimate
    """Share of tokens for which both hold the same one the most probable."""
    original_loss: float
    """Mean loss at the next token, in nats."""
    loss_change: Estimate
    """The quantised model's loss minus the original's, on the same tokens."""

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far the weights of a layer moved, ‖change‖ / ‖original‖."""

    layer: int
    error: float
    """Over all linear weights of the layer."""
    worst: str
    """The tensor that moved furthest."""
    worst_error: float


@torch.inference_mode()
def listen(model: Transformer, batches: Iterable[Batch], on_batch: OnPart) -> Told:
    """What a model makes of some rows, kept in memory without the vocabulary's width."""
    hidden: list[Tensor] = []
    labels: list[Tensor] = []
    device = model.head_weight.device
    for batch in batches:
        ids_BS, positions_BS = batch.ids_BS.to(device), batch.positions_BS.to(device)
        documents_BS = batch.documents_BS.to(device)
        hidden_BSD = model.hidden_states(ids_BS, positions_BS, documents_BS).cpu()
        for row, wanted in zip(hidden_BSD, batch.labels_BS.cpu(), strict=True):
            is_learned = wanted >= 0
            hidden.append(row[is_learned].float())
            labels.append(wanted[is_learned])
        on_batch()
    return Told(tuple(hidden), tuple(labels), model.head_weight.detach().cpu().float())


def compare_told(original: Told, quantised: Told) -> Agreement:
    """How far two models agree on the tokens that both were fed.

    Source: Kullback and Leibler (1951) for the divergence. Errors are those of a ratio of sums over
    rows (Cochran 1977, Sampling Techniques, chapter 6): tokens of a row are not independent.
    """
    rows = [
        _row_sums(original, quantised, row)
        for row, labels in enumerate(original.labels)
        if len(labels)
    ]
    sizes = [float(len(labels)) for labels in original.labels if len(labels)]
    divergence, same, loss, change = ([row[column] for row in rows] for column in range(4))
    return Agreement(
        tokens=int(sum(sizes)),
        rows=len(rows),
        divergence=per_token(divergence, sizes),
        same_choice=per_token(same, sizes),
        original_loss=sum(loss) / sum(sizes),
        loss_change=per_token(change, sizes),
    )


def per_token(sums: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """A mean over the tokens of rows, with the error that choosing other rows would make."""
    n, total = len(sums), sum(sizes)
    mean = sum(sums) / total
    if n < 2:
        return Estimate(mean)
    squares = sum((s - mean * size) ** 2 for s, size in zip(sums, sizes, strict=True))
    stderr = sqrt(squares * n / (n - 1)) / total
    return Estimate(mean, stderr, mean - _Z * stderr, mean + _Z * stderr)


def layer_errors(original: Reader, quantised: Reader, on_tensor: OnPart) -> list[LayerError]:
    """How far the linear weights of every layer moved, the furthest first; two tensors in memory
    at a time."""
    found: dict[int, list[tuple[str, float, float]]] = {}
    for spec in tensors(original.config):
        if spec.may_be_quantised and spec.layer is not None:
            weight = original.read(spec.name, torch.float32)
            moved = quantised.read(spec.name, torch.float32) - weight
            squares = (moved.square().sum().item(), weight.square().sum().item())
            found.setdefault(spec.layer, []).append((spec.name, *squares))
        on_tensor()
    errors = [_layer_error(layer, rows) for layer, rows in found.items()]
    return sorted(errors, key=lambda one: -one.error)


def _row_sums(original: Told, quantised: Told, row: int) -> tuple[float, float, float, float]:
    """Of a row's tokens: divergence, equal choices, the original's loss, and how much it rose."""
    labels = original.labels[row]
    sums = torch.zeros(4, dtype=torch.float64)
    for start, stop in _pieces(len(labels), len(original.head_VD)):
        logp_TV = F.log_softmax(original.hidden[row][start:stop] @ original.head_VD.T, -1)
        logq_TV = F.log_softmax(quantised.hidden[row][start:stop] @ quantised.head_VD.T, -1)
        wanted = labels[start:stop, None]
        loss = -logp_TV.gather(1, wanted).double().sum()
        sums += torch.stack(
            (
                (logp_TV.exp() * (logp_TV - logq_TV)).double().sum(),
                (logp_TV.argmax(-1) == logq_TV.argmax(-1)).double().sum(),
                loss,
                -logq_TV.gather(1, wanted).double().sum() - loss,
            )
        )
    divergence, same, loss, change = sums.tolist()
    return divergence, same, loss, change


def _pieces(tokens: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    at_once = max(1, _LOGITS_AT_ONCE // (2 * vocabulary))
    for start in range(0, tokens, at_once):
        yield start, min(start + at_once, tokens)


def _layer_error(layer: int, rows: Sequence[tuple[str, float, float]]) -> LayerError:
    errors = {name: _relative(moved, weight) for name, moved, weight in rows}
    worst = max(errors, key=lambda name: errors[name])
    whole = _relative(sum(row[1] for row in rows), sum(row[2] for row in rows))
    return LayerError(layer, whole, worst, errors[worst])


def _relative(moved: float, weight: float) -> float:
    return sqrt(moved / weight) if weight else 0.0
