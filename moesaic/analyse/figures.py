"""The figures of a study, as JSON values; `routing` says what each is."""

from collections.abc import Callable, Sequence
from itertools import product
from math import log2
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from moesaic.analyse.coactivate import closest, even_lift, strongest, together, top_pairs
from moesaic.analyse.concentrate import evenness
from moesaic.analyse.counts import LayerCounts
from moesaic.analyse.overlap import by_chance, overlap
from moesaic.analyse.specialise import favourite, foretold, information, specialisation
from moesaic.analyse.study import DomainCounts, Study, natural_layers
from moesaic.balance.stats import load_entropy, max_violation

_SHOWN = 32
"""Experts of a layer whose co-activation is told in full."""
_MEASURES = ("shared", "jaccard", "cosine", "divergence")


def domains(study: Study) -> dict[str, Any]:
    """Tokens and loss of each."""
    return {
        name: {
            "tokens": of.tokens,
            **of.loss(),
            "against": of.loss_against() if of.losses_against else None,
        }
        for name, of in study.domains.items()
    }


def loads(study: Study) -> dict[str, Any]:
    """Where the tokens of each domain go."""
    return {name: _loads(of, natural_layers(study)) for name, of in study.domains.items()}


def _loads(of: DomainCounts, layers: Sequence[int]) -> dict[str, Any]:
    counts = [of.layer(layer) for layer in layers]
    even = [evenness(one) for one in counts]
    return {
        "choices": [one.share_E.tolist() for one in counts],
        "first": [(one.first_E / max(1, one.tokens)).tolist() for one in counts],
        "gate": [list(one.sums.gate) for one in counts],
        "max_violation": [one.max_violation for one in even],
        "entropy": [one.entropy for one in even],
        "unused": [one.unused for one in even],
        "half": [one.half for one in even],
        "gate_by_rank": [list(one.gate_by_rank) for one in even],
        "uncertainty": [one.uncertainty for one in even],
    }


def together_loads(study: Study) -> dict[str, Any]:
    """The load over all domains, each alike."""
    means = [_stacked(study, layer).mean(0) for layer in natural_layers(study)]
    return {
        "choices": [mean_E.tolist() for mean_E in means],
        "max_violation": [max_violation(mean_E) for mean_E in means],
        "entropy": [load_entropy(mean_E) for mean_E in means],
        "unused": [int((mean_E == 0).sum()) for mean_E in means],
    }


def specialised(study: Study) -> dict[str, Any] | None:
    """How far experts are for one domain; None where there is but one."""
    if len(study.domains) < 2:
        return None
    chosen, layers = study.config.num_experts_per_tok or 1, natural_layers(study)
    found = [
        information(torch.stack([one.load_E for one in counts]), _tokens(counts), chosen)
        for counts in _by_layer(study)
    ]
    stacked = [_stacked(study, layer) for layer in layers]
    return {
        "domains": list(study.domains),
        "most": log2(len(study.domains)),
        "information": [one.bits for one in found],
        "corrected": [one.corrected for one in found],
        "halves": [_of_halves(study, layer, chosen) for layer in layers],
        "experts": [specialisation(shares) for shares in stacked],
        "favourite": [_favourites(shares) for shares in stacked],
    }


def _of_halves(study: Study, layer: int, chosen: int) -> float | None:
    """The same between halves of one domain, corrected, mean over domains: what chance makes."""
    found: list[float] = []
    for of in study.domains.values():
        halves = [half[layer] for half in of.halves if layer in half]
        if len(halves) == 2:
            loads = torch.stack([half.load_E for half in halves])
            found.append(information(loads, _tokens(halves), chosen).corrected)
    return fmean(found) if found else None


def _favourites(shares: Tensor) -> list[int | None]:
    """The domain that gives each expert the largest share of its choices."""
    best = shares.argmax(0).tolist()
    return [
        found if used else None for found, used in zip(best, shares.any(0).tolist(), strict=True)
    ]


def overlaps(study: Study) -> dict[str, Any]:
    """How alike domains are in the experts they go to, and halves of the same domain."""
    top, experts, layers = study.settings.top, study.config.experts, natural_layers(study)
    by_layer: dict[str, list[Any]] = {name: [] for name in _MEASURES}
    for counts in _by_layer(study):
        pairs = [overlap(a.load_E, b.load_E, top) for a, b in product(counts, repeat=2)]
        for name in _MEASURES:
            row = [getattr(pair, name) for pair in pairs]
            by_layer[name].append(
                [row[i : i + len(counts)] for i in range(0, len(row), len(counts))]
            )
    return {
        "domains": list(study.domains),
        "top": top,
        "by_chance": by_chance(experts, top),
        "layers": by_layer,
        "mean": {
            name: torch.tensor(of, dtype=torch.float64).mean(0).tolist()
            for name, of in by_layer.items()
        },
        "halves": {name: _halves(of, layers, top) for name, of in study.domains.items()},
    }


def _halves(of: DomainCounts, layers: Sequence[int], top: int) -> dict[str, float] | None:
    """Mean over layers; None of a single batch."""
    one, other = of.halves
    if not other:
        return None
    found = [overlap(one[i].load_E, other[i].load_E, top) for i in layers]
    return {name: fmean(getattr(pair, name) for pair in found) for name in _MEASURES}


def coactivation(study: Study) -> dict[str, Any] | None:
    """Which experts are chosen together, over all tokens; None where tokens choose one."""
    experts, chosen = study.config.experts, study.config.num_experts_per_tok or 1
    if chosen < 2:
        return None
    return {
        "even": {"share": (chosen - 1) / (experts - 1), "lift": even_lift(experts, chosen)},
        "layers": [_coactivation(counts, study.settings.pairs) for counts in _by_layer(study)],
    }


def _coactivation(counts: Sequence[LayerCounts], pairs: int) -> dict[str, Any]:
    pairs_EE = torch.stack([one.pairs_EE for one in counts]).sum(0)
    shown = closest(pairs_EE, _SHOWN)
    tokens = int(_tokens(counts).sum())
    return {
        "tokens": tokens,
        "strongest": strongest(pairs_EE),
        "pairs": [
            {
                "experts": list(pair.experts),
                "tokens": pair.tokens,
                "given_first": pair.given_first,
                "given_second": pair.given_second,
                "lift": pair.lift,
            }
            for pair in top_pairs(pairs_EE, tokens, pairs)
        ],
        "matrix": {"experts": shown, "share": together(pairs_EE)[shown][:, shown].tolist()},
    }


def vocabulary(study: Study) -> dict[str, Any] | None:
    """How far the token alone decides where it goes; None where tokens were not recorded."""
    words = study.words
    if not words.layers:
        return None
    halves = [words.layers[layer] for layer in sorted(words.layers)]
    counts = [one.sum(0) for one in halves]
    followed = int(counts[0].sum())
    return {
        "token_ids": len(counts[0]),
        "covered": followed / max(1, words.passed),
        "layers": sorted(words.layers),
        "foretold": [foretold(one) for one in halves],
        "busiest": [int(one.sum(0).max()) / max(1, followed) for one in counts],
        "favourite": [favourite(one) for one in counts],
    }


def coverage(study: Study) -> dict[str, Any] | None:
    """What the resident experts hold; None where none are named."""
    if study.resident is None:
        return None
    found, layers = {}, natural_layers(study)
    for name, of in study.domains.items():
        held = [of.held[layer].coverage() for layer in layers]
        columns = {
            key: [getattr(one.covered, key) for one in held] for key in held[0].covered._fields
        }
        everywhere = of.everywhere.share if of.everywhere else None
        mean = {key: fmean(column) for key, column in columns.items()}
        found[name] = {**columns, "mean": {**mean, "everywhere": everywhere}}
    held = [one.coverage().held for one in next(iter(study.domains.values())).held.values()]
    return {"resident": study.settings.resident, "held": held, "domains": found}


def drift(study: Study) -> dict[str, Any]:
    """How differently the other checkpoint routes, by layer in every domain."""
    found: dict[str, Any] = {}
    for name, of in study.domains.items():
        shares = [of.drift[layer].shares for layer in sorted(of.drift)]
        found[name] = {key: [share[key] for share in shares] for key in shares[0]}
        found[name]["before"] = [of.drift[layer].before for layer in sorted(of.drift)]
    return {"layers": sorted(next(iter(study.domains.values())).drift), "domains": found}


def rounded(value: Any, digits: int = 6) -> Any:
    """JSON values with numbers of so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value


def _by_layer(study: Study) -> list[list[LayerCounts]]:
    """Layer by layer the counts of every domain."""
    domains = study.domains.values()
    return [[of.layer(layer) for of in domains] for layer in natural_layers(study)]


def _stacked(study: Study, layer: int) -> Tensor:
    """Shares of the choices in a layer, a row for each domain."""
    return torch.stack([of.layer(layer).share_E for of in study.domains.values()])


def _tokens(counts: Sequence[LayerCounts]) -> Tensor:
    device = counts[0].first_E.device
    return torch.tensor([one.tokens for one in counts], device=device)


FIGURES: dict[str, Callable[[Study], Any]] = {
    "domains": domains,
    "loads": loads,
    "all_loads": together_loads,
    "specialisation": specialised,
    "overlap": overlaps,
    "coactivation": coactivation,
    "vocabulary": vocabulary,
    "coverage": coverage,
}
"""Those that need no more than the counts, by their name in the file."""
