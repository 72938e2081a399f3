"""How much a data set needs each expert: how often it is chosen, and with what gate values.

Letters: T tokens, E experts of a layer, K experts chosen per token.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_file
from moesaic.config.esft import Score
from moesaic.data.batch import IGNORED, Batch
from moesaic.errors import ConfigError, DataError
from moesaic.model.build import load_model
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import ModelLoss, Transformer, labels_at_depth

LayerScores = dict[int, tuple[float, ...]]
"""Layer → one score per expert, in the order of their ids."""
LayerExperts = dict[int, tuple[int, ...]]
"""Layer → ids of some of its experts."""
_DECIMALS = 4
"""Digits of a score that decide which of two is higher: those of the published scores."""


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

    def ranked(self, kind: Score) -> LayerExperts:
        """Layer → its experts by score, best first.

        Scores that agree to four decimals are equal, and of equals the lower id comes first: so
        are the published selections made. Less than that is noise of the sample.
        """
        return {
            layer: tuple(sorted(range(len(row)), key=lambda id: (-round(row[id], _DECIMALS), id)))
            for layer, row in self.of(kind).items()
        }

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


class Chosen(NamedTuple):
    """What the learned tokens of a batch chose in one layer."""

    ids_TK: Tensor
    """int64 ids of the chosen experts."""
    weights_TK: Tensor
    """Their gate values."""


@dataclass(slots=True)
class LayerSums:
    """Sums of a layer over tokens; float64, so that the order of batches does not show."""

    chosen_E: Tensor
    gate_E: Tensor
    tokens: int = 0

    @classmethod
    def zero(cls, n_experts: int, device: torch.device | str = "cpu") -> "LayerSums":
        """Sums over no tokens."""
        sums_E = torch.zeros(n_experts, dtype=torch.float64, device=device)
        return cls(sums_E, sums_E.clone())

    def add_(self, chosen: Chosen) -> None:
        """Add tokens."""
        ids_TK, weights_TK = chosen.ids_TK, chosen.weights_TK.double()
        self.chosen_E += ids_TK.flatten().bincount(minlength=len(self.chosen_E))
        zeros_TE = weights_TK.new_zeros(len(ids_TK), len(self.gate_E))
        self.gate_E += zeros_TE.scatter(1, ids_TK, weights_TK).sum(0)
        self.tokens += len(ids_TK)

    @property
    def token(self) -> tuple[float, ...]:
        """The token score of every expert: its share of the choices.

        Source: ESFT (arXiv 2407.01906) eq. 7.
        """
        return tuple((self.chosen_E / self.chosen_E.sum().clamp(min=1)).tolist())

    @property
    def gate(self) -> tuple[float, ...]:
        """The gate score of every expert: its mean gate value, 0 where it is not chosen.

        Source: ESFT (arXiv 2407.01906) eq. 6.
        """
        return tuple((self.gate_E / max(1, self.tokens)).tolist())


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
    check_natural(model)
    device = next(model.parameters()).device
    sums = {layer: LayerSums.zero(model.config.experts, device) for layer in model.moe_layers()}
    loss, tokens = 0.0, 0
    for batch in batches:
        found, chosen = trace_batch(model, batch.to(device))
        for layer, of_layer in chosen.items():
            sums[layer].add_(of_layer)
        loss, tokens = loss + float(found.next_token), tokens + int(found.tokens)
        if on_batch is not None:
            on_batch(tokens)
    if not tokens:
        raise DataError("the data holds no learned token to score experts on; give more of it")
    return ExpertScores(
        token={i: layer.token for i, layer in sums.items()},
        gate={i: layer.gate for i, layer in sums.items()},
        chosen_per_token=model.config.num_experts_per_tok or 0,
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


def check_natural(model: Transformer) -> None:
    """Refuse a model whose routing is not its own.

    Raises:
        ConfigError: if the model has no experts, or is a slice.
    """
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


def trace_batch(model: Transformer, batch: Batch) -> tuple[ModelLoss, dict[int, Chosen]]:
    """The loss of a batch, and what every layer chose at the positions that are learned there."""
    trace = RoutingTrace()
    labels_BS, documents_BS = batch.labels_BS, batch.documents_BS
    loss = model.loss(batch.ids_BS, labels_BS, batch.positions_BS, documents_BS, trace=trace)
    chosen: dict[int, Chosen] = {}
    for layer, routing in trace.layers.items():
        learned_T = learned_at(model, batch, layer)
        chosen[layer] = Chosen(routing.ids_TK[learned_T], routing.weights_TK[learned_T])
    return loss, chosen


def learned_at(model: Transformer, batch: Batch, layer: int) -> Tensor:
    """bool [T], positions of a batch where what a layer is for is learned.

    A prediction module sees a position for the sake of a token further on.
    """
    depth = max(0, layer - model.config.num_hidden_layers + 1)
    labels_BS = batch.labels_BS
    if depth:
        labels_BS = labels_at_depth(labels_BS, batch.documents_BS, depth)
    return labels_BS.flatten() != IGNORED
