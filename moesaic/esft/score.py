"""How much a data set needs each expert: how often it is chosen, and with what gate values.

Letters: T tokens, E experts of a layer, K experts chosen per token.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_file
from moesaic.config.esft import Score
from moesaic.data.batch import IGNORED, Batch
from moesaic.errors import ConfigError, DataError
from moesaic.model.build import load_model
from moesaic.model.routing import Routing
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import ModelLoss, Transformer, labels_at_depth

LayerScores = dict[int, tuple[float, ...]]
"""Layer → one score per expert, in the order of their ids."""


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """Mean scores of a model's experts over the learned tokens of some data.

    Source: ESFT (arXiv 2407.01906) eq. 6 and 7, over samples of equal length.
    """

    token: LayerScores
    """Share of the choices that fell on the expert; a layer's scores add up to 1."""
    gate: LayerScores
    """Gate value of the expert, 0 where it is not chosen."""
    chosen_per_token: int
    """Experts each token goes to, K."""
    tokens: int
    """Tokens the means are over."""
    loss: float
    """Mean loss of the next token on them, in nats."""

    def of(self, kind: Score) -> LayerScores:
        """One of the two scores."""
        return self.token if kind == "token" else self.gate

    def covered(self, kind: Score, experts: Mapping[int, Sequence[int]]) -> dict[int, float]:
        """Layer → part of its experts' score that fell on the given ones; 0 where it has none."""
        scores = {layer: self.of(kind)[layer] for layer in experts}
        return {
            layer: sum(scores[layer][expert] for expert in ids) / (sum(scores[layer]) or 1)
            for layer, ids in experts.items()
        }

    def save(self, path: Path | str) -> None:
        """Write the scores as JSON, whole or not at all."""
        values = {name: getattr(self, name) for name in self.__slots__}
        with new_file(Path(path)) as file:
            file.write(json.dumps(values).encode() + b"\n")

    @classmethod
    def load(cls, path: Path | str) -> "ExpertScores":
        """The scores in a file that `save` wrote.

        Raises:
            DataError: if they are not there.
        """
        try:
            found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            for kind in ("token", "gate"):
                found[kind] = {int(i): tuple(map(float, row)) for i, row in found[kind].items()}
            return cls(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} holds no expert scores ({error}); score again") from None


@dataclass(slots=True)
class _Sums:
    """Sums of a layer over tokens; float64, so that the order of batches does not show."""

    chosen_E: Tensor
    gate_E: Tensor
    tokens: int = 0

    @classmethod
    def zero(cls, n_experts: int, device: torch.device) -> "_Sums":
        sums_E = torch.zeros(n_experts, dtype=torch.float64, device=device)
        return cls(sums_E, sums_E.clone())

    def add_(self, routing: Routing, learned_T: Tensor) -> None:
        ids_TK, weights_TK = routing.ids_TK[learned_T], routing.weights_TK[learned_T].double()
        zeros_TE = weights_TK.new_zeros(len(ids_TK), len(self.gate_E))
        self.chosen_E += zeros_TE.scatter(1, ids_TK, 1.0).sum(0)
        self.gate_E += zeros_TE.scatter(1, ids_TK, weights_TK).sum(0)
        self.tokens += len(ids_TK)


@torch.no_grad()
def score_experts(
    model: Transformer | Path | str,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] | None = None,
) -> ExpertScores:
    """Score every expert of a model on some data.

    Positions without a label (padding, and what is not learned) do not count. Prediction modules
    are scored too, where their token is learned.

    Args:
        model: with every expert allowed; or a checkpoint folder, which is loaded in float32.
        batches: what to score on.
        on_batch: called after each batch with the number of tokens scored so far.

    Raises:
        ConfigError: if the model has no experts, or is a slice.
        DataError: if the batches hold no learned token.
    """
    model = model if isinstance(model, Transformer) else load_model(model)
    _check_natural(model)
    device = next(model.parameters()).device
    sums = {layer: _Sums.zero(model.config.experts, device) for layer in model.moe_layers()}
    loss, tokens = 0.0, 0
    for batch in batches:
        found = _add_batch(model, batch.to(device), sums)
        loss, tokens = loss + float(found.next_token), tokens + int(found.tokens)
        if on_batch is not None:
            on_batch(tokens)
    if not tokens:
        raise DataError("the data holds no learned token to score experts on; give more of it")
    chosen = model.config.num_experts_per_tok or 0
    return ExpertScores(
        token={i: _means(layer.chosen_E, layer.tokens * chosen) for i, layer in sums.items()},
        gate={i: _means(layer.gate_E, layer.tokens) for i, layer in sums.items()},
        chosen_per_token=chosen,
        tokens=tokens,
        loss=loss / tokens,
    )


def first_tokens(batches: Iterable[Batch], learned: int) -> Iterator[Batch]:
    """The first batches that together have this many learned tokens, or all there are."""
    for batch in batches:
        yield batch
        learned -= batch.learned
        if learned <= 0:
            return


def _check_natural(model: Transformer) -> None:
    """Refuse a model whose routing is not its own."""
    config, residency = model.config, model.residency
    if not config.experts:
        raise ConfigError(
            f"a dense {config.model_type} model has no experts to score; give another"
        )
    for layer in model.moe_layers():
        allowed = residency.allowed_in(config, layer)
        if len(allowed) < config.experts:
            raise ConfigError(
                f"layer {layer} may choose {len(allowed)} of its {config.experts} experts; scores "
                "need the natural choice: load the whole model"
            )


def _add_batch(model: Transformer, batch: Batch, sums: dict[int, _Sums]) -> ModelLoss:
    """Add the routing of every layer at the positions that are learned there."""
    trace = RoutingTrace()
    labels_BS, documents_BS = batch.labels_BS, batch.documents_BS
    loss = model.loss(batch.ids_BS, labels_BS, batch.positions_BS, documents_BS, trace=trace)
    for layer, routing in trace.layers.items():
        depth = max(0, layer - model.config.num_hidden_layers + 1)
        learned_BS = labels_BS if depth == 0 else labels_at_depth(labels_BS, documents_BS, depth)
        sums[layer].add_(routing, learned_BS.flatten() != IGNORED)
    return loss


def _means(sum_E: Tensor, count: int) -> tuple[float, ...]:
    return tuple((sum_E / max(1, count)).tolist())
