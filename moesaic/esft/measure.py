"""Measure, before it is trained, what a slice holds of a model's routing and what that costs it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from math import sqrt
from pathlib import Path

import torch

from moesaic.checkpoint.atomic import new_file
from moesaic.config.esft import EsftConfig, Score
from moesaic.data.batch import Batch
from moesaic.errors import DataError
from moesaic.esft.coverage import Coverage, LayerCoverageSums, Reach, ReachSums
from moesaic.esft.heatmap import HeatMap
from moesaic.esft.score import (
    ExpertScores,
    LayerExperts,
    check_natural,
    first_tokens,
    score_experts,
    trace_batch,
)
from moesaic.esft.select import Selection, read_selection, select
from moesaic.model.transformer import Transformer

SCORES, COVERAGE, PICTURE = "scores.json", "coverage.json", "experts.svg"
"""Files that `Choice.save` writes."""
_MEASURED = 4
"""Tokens scored for each that coverage is measured on."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is trained, and why."""

    scores: ExpertScores
    selection: Selection
    coverage: Coverage | None
    """What the selection holds; None where every expert stays within reach."""

    def told(self) -> list[str]:
        """What is trained and what that holds and costs, for a person."""
        experts = [len(ids) for ids in self.selection.experts.values()]
        first = f"training {sum(experts)} experts in {len(experts)} layers"
        if self.coverage is None:
            return [f"{first}; tokens may go to all others as well, so routing leaves no gap"]
        frozen = sum(len(ids) for ids in self.selection.frozen.values())
        kept = f", {frozen} more held frozen" if frozen else ""
        return [f"{first}{kept}", *self.coverage.told()]

    def save(self, folder: Path, kind: Score) -> None:
        """Write scores.json, coverage.json and a picture of the layers, experts.svg.

        Args:
            folder: is made where there is none.
            kind: which of the scores the picture shows.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.scores.save(folder / SCORES)
        if self.coverage is not None:
            with new_file(folder / COVERAGE) as file:
                file.write(json.dumps(self.coverage.to_json()).encode() + b"\n")
        with new_file(folder / PICTURE) as file:
            file.write(HeatMap(self.scores, kind, self.selection, self.coverage).svg().encode())


def choose_experts(
    model: Transformer,
    batches: Iterable[Batch],
    config: EsftConfig,
    on_batch: Callable[[int], None] | None = None,
) -> Choice:
    """Score a model's experts on some data, select by the scores, and measure what that covers.

    A selection that a file names is measured as it is.
    Coverage is measured on the tokens that follow those scored, a quarter as many; where the data
    end before, on the first of those scored.

    Args:
        model: with every expert allowed.
        batches: the data, each token once.
        config: how to choose.
        on_batch: called after each batch with the number of tokens scored so far.

    Raises:
        ConfigError: if the model is a slice, or has not what is asked for.
        DataError: if the data hold no learned token.
    """
    rest, few = iter(batches), -(-config.score_tokens // _MEASURED)
    kept = _Kept(few)
    scores = score_experts(model, kept.of(first_tokens(rest, config.score_tokens)), on_batch)
    if config.selection is None:
        selection = select(scores, config)
    else:
        selection = read_selection(config.selection)
    if config.variant == "natural":
        return Choice(scores, selection.natural(model.config), None)
    others = list(first_tokens(rest, few))
    held_out = any(batch.learned for batch in others)
    measured = others if held_out else kept.batches
    coverage = measure_coverage(model, measured, selection, scores, config.score, held_out)
    return Choice(scores, selection, coverage)


@torch.no_grad()
def measure_coverage(
    model: Transformer,
    batches: Iterable[Batch],
    selection: Selection,
    scores: ExpertScores,
    kind: Score = "token",
    held_out: bool = True,
    on_batch: Callable[[int], None] | None = None,
) -> Coverage:
    """What the experts of a selection hold of a model's natural routing, and what they lose.

    Every batch passes twice: with the model's own routing, and with routers that may choose only
    what the selection trains and keeps.

    Args:
        model: with every expert allowed; the selection must fit it.
        batches: tokens to measure on, best others than those that were scored.
        selection: what is trained and what is frozen beside it.
        scores: order the experts of each layer for the curves.
        kind: which of the two scores.
        held_out: whether the tokens are others than those that were scored.
        on_batch: called after each batch with the number of tokens measured so far.

    Raises:
        ConfigError: if the model is a slice, or the selection does not fit it.
        DataError: if the batches hold no learned token.
    """
    check_natural(model)
    selection.residency().check(model.config)
    measured = _Measured(model, selection, scores.ranked(kind))
    for batch in batches:
        measured.add_(batch)
        if on_batch is not None:
            on_batch(measured.tokens)
    if not measured.tokens:
        raise DataError("the data holds no learned token to measure coverage on; give more of it")
    return measured.coverage(held_out)


@contextmanager
def routed_among(model: Transformer, allowed: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Inside, the routers of some layers choose among these experts only; afterwards as before."""
    gates = {layer: moe.gate for layer, moe in model.moe_layers().items()}
    try:
        for layer, experts in allowed.items():
            gates[layer].allow_(experts)
        yield
    finally:
        for layer in allowed:
            gates[layer].allow_(model.residency.allowed_in(model.config, layer))


@dataclass(slots=True)
class _Measured:
    """Sums over batches of what `measure_coverage` tells."""

    model: Transformer
    selection: Selection
    ranked: LayerExperts
    sums: dict[int, LayerCoverageSums] = field(init=False)
    everywhere: ReachSums = field(init=False)
    limited: dict[int, tuple[int, ...]] = field(init=False)
    """Layer → held experts, where they are not all."""
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    """Tokens, natural loss and held loss of every batch, as sums."""

    def __post_init__(self) -> None:
        config, residency = self.model.config, self.selection.residency()
        device = next(self.model.parameters()).device
        held = {layer: residency.allowed_in(config, layer) for layer in self.model.moe_layers()}
        self.limited = {i: ids for i, ids in held.items() if len(ids) < config.experts}
        self.sums = {i: LayerCoverageSums(self.ranked[i], held[i], device) for i in held}
        self.everywhere = ReachSums(torch.zeros(config.experts, dtype=torch.int64, device=device))

    @property
    def tokens(self) -> int:
        return sum(tokens for tokens, _, _ in self.losses)

    def add_(self, batch: Batch) -> None:
        """Pass a batch with the natural routing, and once more with that among held experts."""
        batch = batch.to(self.everywhere.last_E.device)
        loss, chosen = trace_batch(self.model, batch)
        reached = {layer: self.sums[layer].add_(of_layer) for layer, of_layer in chosen.items()}
        depth = self.model.config.num_hidden_layers
        self.everywhere.add_(reduce(Reach.further, (reached[i] for i in reached if i < depth)))
        natural = held = float(loss.next_token)
        if self.limited:
            with routed_among(self.model, self.limited):
                held = float(trace_batch(self.model, batch)[0].next_token)
        self.losses.append((int(loss.tokens), natural, held))

    def coverage(self, held_out: bool) -> Coverage:
        tokens, naturals, helds = zip(*self.losses, strict=True)
        return Coverage(
            layers={layer: sums.coverage() for layer, sums in self.sums.items()},
            everywhere=self.everywhere.share,
            everywhere_curve=self.everywhere.curve,
            tokens=self.tokens,
            held_out=held_out,
            natural_loss=sum(naturals) / self.tokens,
            held_loss=sum(helds) / self.tokens,
            gap_error=standard_error(
                tokens, [held - natural for natural, held in zip(naturals, helds, strict=True)]
            ),
        )


@dataclass(slots=True)
class _Kept:
    """Keeps the first batches that pass by, up to a number of learned tokens."""

    learned: int
    batches: list[Batch] = field(default_factory=list)

    def of(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.learned > 0:
                self.batches.append(batch)
                self.learned -= batch.learned
            yield batch


def standard_error(sizes: Sequence[int], sums: Sequence[float]) -> float | None:
    """Of a mean over tokens that come in batches: each batch's sum against what the mean expects.

    Source: Cochran, Sampling Techniques (1977), chapter 6, the ratio estimator.
    """
    if len(sizes) < 2:
        return None
    total, mean = sum(sizes), sum(sums) / sum(sizes)
    squares = sum((found - mean * size) ** 2 for size, found in zip(sizes, sums, strict=True))
    return sqrt(squares * len(sizes) / (len(sizes) - 1)) / total
