"""What experts are good for: the loss with some of them switched off, weights as they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Any, Literal

from moesaic.config.analyse import AblationConfig
from moesaic.config.model import ModelConfig
from moesaic.data.batch import Batch
from moesaic.esft.measure import standard_error
from moesaic.model.ablation import Ablation
from moesaic.model.transformer import Transformer

Experiment = Literal["shared", "disabled", "chosen"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to route otherwise."""

    experiment: Experiment
    ablation: Ablation


@dataclass(frozen=True, slots=True)
class Experiments:
    """What can be tried with a model, and what cannot."""

    variants: tuple[Variant, ...]
    left_out: dict[Experiment, str]
    """Experiment → why it has no meaning here."""

    @classmethod
    def of(cls, config: ModelConfig, asked: AblationConfig) -> "Experiments":
        """Those of DeepSeekMoE that a model has the parts for.

        Raises:
            ConfigError: if more experts per token are asked for than there are.

        Source: DeepSeekMoE (arXiv 2401.06066) section 4.5 and figures 4 and 5.
        """
        if not config.experts:
            why = "the model is dense"
            return cls((), {"shared": why, "disabled": why, "chosen": why})
        left_out: dict[Experiment, str] = {}
        found = [*_without_shared(config)]
        if not found:
            left_out["shared"] = "the model has no shared experts"
        if config.topk_method == "hash":
            left_out["disabled"] = left_out["chosen"] = "a hash knows no second choice"
        else:
            found += [*_disabled(config, asked), *_chosen(config, asked)]
        for variant in found:
            variant.ablation.check(config)
        return cls(tuple(found), left_out)


def _without_shared(config: ModelConfig) -> Iterable[Variant]:
    """Shared experts off with as many routed ones more, so that the compute is the same; and just
    off."""
    shared, chosen = config.n_shared_experts or 0, config.num_experts_per_tok or 0
    if shared and config.topk_method != "hash" and chosen + shared <= config.experts:
        yield Variant("shared", Ablation(chosen=chosen + shared, shared=False))
    if shared:
        yield Variant("shared", Ablation(shared=False))


def _disabled(config: ModelConfig, asked: AblationConfig) -> Iterable[Variant]:
    """Every token passes over the experts it prefers; the shared ones stay."""
    chosen = config.num_experts_per_tok or 0
    for skipped in dict.fromkeys(max(1, round(ratio * config.experts)) for ratio in asked.disabled):
        if skipped + chosen <= config.experts:
            yield Variant("disabled", Ablation(skipped=skipped))


def _chosen(config: ModelConfig, asked: AblationConfig) -> Iterable[Variant]:
    """Tokens go to fewer experts, or more, than in training."""
    usual = config.num_experts_per_tok or 0
    numbers = asked.chosen or range(1, min(config.experts, usual + 1) + 1)
    return (Variant("chosen", Ablation(chosen=number)) for number in numbers if number != usual)


@dataclass(slots=True)
class _Passed:
    """One batch: learned tokens, and sums of the loss over them."""

    domain: str
    tokens: int
    natural: float
    ablated: list[float]


@dataclass(slots=True)
class Ablations:
    """Losses of one model with experts switched off, batch by batch."""

    model: Transformer
    asked: AblationConfig
    experiments: Experiments = field(init=False)
    passed: list[_Passed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiments = Experiments.of(self.model.config, self.asked)

    def wants(self, domain: str) -> bool:
        """Whether more tokens of a domain are to be measured."""
        return sum(one.tokens for one in self.passed if one.domain == domain) < self.asked.tokens

    def add_(self, domain: str, batch: Batch, natural: float) -> None:
        """Measure a batch, on the model's device, whose loss with all experts is known."""
        rows = (batch.ids_BS, batch.labels_BS, batch.positions_BS, batch.documents_BS)
        ablated = [
            float(self.model.loss(*rows, ablation=variant.ablation).next_token)
            for variant in self.experiments.variants
        ]
        self.passed.append(_Passed(domain, batch.learned, natural, ablated))

    def to_json(self) -> dict[str, Any]:
        """The curves, by experiment; the form is in the docstring of `routing`."""
        config = self.model.config
        natural = {"experts": 0, "ratio": 0.0, "chosen": config.num_experts_per_tok, "shared": True}
        points: dict[str, list[dict[str, Any]]] = {name: [] for name in ("disabled", "chosen")}
        points = {name: [{**natural, **self._point(None)}] for name in points}
        points["shared"] = []
        for place, variant in enumerate(self.experiments.variants):
            points[variant.experiment].append({**_told(variant, config), **self._point(place)})
        points["chosen"].sort(key=lambda point: point["chosen"])
        for name in self.experiments.left_out:
            points[name] = []
        return {
            "tokens": sum(one.tokens for one in self.passed),
            "natural": {**natural, **self._point(None)},
            **points,
            "redundancy": mean_rise(points["disabled"]),
            "left_out": dict(self.experiments.left_out),
        }

    def _point(self, place: int | None) -> dict[str, Any]:
        """In each domain, and over all tokens."""
        names = dict.fromkeys(one.domain for one in self.passed)
        domains = {
            name: _loss([one for one in self.passed if one.domain == name], place) for name in names
        }
        sizes = {
            name: sum(one.tokens for one in self.passed if one.domain == name) for name in names
        }
        return {**pooled(domains, sizes), "domains": domains}


def _told(variant: Variant, config: ModelConfig) -> dict[str, Any]:
    """What was switched off."""
    ablation = variant.ablation
    return {
        "experts": ablation.skipped,
        "ratio": ablation.skipped / config.experts,
        "chosen": ablation.chosen or config.num_experts_per_tok,
        "shared": ablation.shared,
    }


def _loss(passed: Sequence[_Passed], place: int | None) -> dict[str, float | None]:
    """Mean loss in nats, how much above the natural one it is, and the errors of both."""
    sizes, natural = [one.tokens for one in passed], [one.natural for one in passed]
    found = natural if place is None else [one.ablated[place] for one in passed]
    rises = [there - here for there, here in zip(found, natural, strict=True)]
    tokens = max(1, sum(sizes))
    return {
        "loss": sum(found) / tokens,
        "stderr": standard_error(sizes, found),
        "rise": sum(rises) / tokens,
        "rise_stderr": standard_error(sizes, rises),
    }


def pooled(
    domains: Mapping[str, Mapping[str, float | None]], sizes: Mapping[str, int]
) -> dict[str, float | None]:
    """Means over the tokens of several domains; of errors, those of a mean over fixed strata.

    That domains differ is no error: others were not to be drawn.

    Source: Cochran, Sampling Techniques (1977), theorem 5.3.
    """
    total, found = max(1, sum(sizes.values())), dict[str, float | None]()
    for name, error in (("loss", "stderr"), ("rise", "rise_stderr")):
        found[name] = sum((domains[of][name] or 0.0) * sizes[of] for of in domains) / total
        errors = [(domains[of][error], sizes[of] / total) for of in domains]
        known = [(value * share) ** 2 for value, share in errors if value is not None]
        found[error] = sqrt(sum(known)) if len(known) == len(errors) else None
    return found


def mean_rise(points: Sequence[dict[str, Any]]) -> float | None:
    """Mean rise of the loss over the ratios of experts passed over, from 0 to the highest.

    The area under the curve over its width: the lower, the more other experts can stand in for
    those that were preferred, the more redundant they are. None without a curve.

    Source: what figure 4 of DeepSeekMoE (arXiv 2401.06066) shows, as one number.
    """
    curve = sorted((point["ratio"], point["rise"]) for point in points)
    if len(curve) < 2:
        return None
    area = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])
