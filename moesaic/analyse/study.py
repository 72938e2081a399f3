"""One pass over the tokens of some domains: what is counted of each, and what is kept of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch

from moesaic.analyse.ablate import Ablations
from moesaic.analyse.counts import LayerCounts, Seen, TokenCounts, see_batch
from moesaic.analyse.drift import LayerDrift
from moesaic.config.analyse import RoutingConfig
from moesaic.config.model import ModelConfig
from moesaic.data.batch import Batch
from moesaic.errors import ConfigError, DataError
from moesaic.esft.coverage import LayerCoverageSums, Reach, ReachSums
from moesaic.esft.measure import standard_error
from moesaic.esft.score import Chosen, ExpertScores, check_natural
from moesaic.esft.select import Selection
from moesaic.model.residency import layers_with_experts
from moesaic.model.transformer import Transformer

_PARTS = 8
"""Text goes to the halves of a domain in turn, in eighths of what was asked for: neighbours are of
the same document, and would make the halves alike."""
OnTokens = Callable[[str, int], None]
"""Called with a domain and how many of its tokens have passed."""


@dataclass(slots=True)
class DomainCounts:
    """Everything counted of one domain, in two halves: how much those differ is what chance alone
    makes of two domains."""

    halves: tuple[dict[int, LayerCounts], dict[int, LayerCounts]] = field(
        default_factory=lambda: ({}, {})
    )
    drift: dict[int, LayerDrift] = field(default_factory=dict)
    held: dict[int, LayerCoverageSums] = field(default_factory=dict)
    everywhere: ReachSums | None = None
    """Tokens by whether every layer's choices are held; prediction modules see other tokens."""
    sizes: list[int] = field(default_factory=list)
    """Learned tokens of each batch."""
    losses: list[float] = field(default_factory=list)
    """Sums over them, in nats."""
    losses_against: list[float] = field(default_factory=list)
    """The same of the other checkpoint."""

    def layer(self, index: int) -> LayerCounts:
        """The counts of both halves together."""
        one, other = self.halves
        return one[index].joined(other[index]) if index in other else one[index]

    @property
    def tokens(self) -> int:
        """Tokens counted, in the layers that see most."""
        return sum(max(layer.tokens for layer in half.values()) for half in self.halves if half)

    def loss(self) -> dict[str, float | None]:
        """Mean loss and its error, in nats; None where routing was recorded without."""
        return _mean(self.sizes, self.losses)

    def loss_against(self) -> dict[str, float | None]:
        """Mean loss of the other checkpoint, and by how much this one's is above it."""
        pairs = zip(self.losses, self.losses_against, strict=False)
        rise = _mean(self.sizes, [here - there for here, there in pairs])
        found = _mean(self.sizes, self.losses_against)
        compared = {"rise": rise["loss"], "rise_stderr": rise["stderr"]}
        return {**found, **compared, "batches": len(self.losses_against)}


@dataclass(slots=True)
class Study:
    """What a model does with the tokens of some domains."""

    config: ModelConfig
    settings: RoutingConfig
    resident: Selection | None = None
    """Experts whose part of the routing is told."""
    device: str = "cpu"
    domains: dict[str, DomainCounts] = field(default_factory=dict)
    words: TokenCounts = field(init=False)
    expected: int = 1
    """Domains there will be: room for tokens to follow is shared out over them."""

    def __post_init__(self) -> None:
        if self.resident is not None:
            self.resident.residency().check(self.config)
        self.use_(self.device)

    def use_(self, device: str) -> None:
        """Count on a device; call it before anything is counted."""
        self.device = device
        self.words = TokenCounts(self.config.vocab_size, self.config.experts, device)

    def add_(self, domain: str, seen: Mapping[int, Seen], part: int = 0) -> None:
        """Count tokens; even parts are one half of a domain, odd ones the other."""
        of = self.domains.setdefault(domain, DomainCounts())
        half, experts = of.halves[part % 2], self.config.experts
        self._follow(seen)
        for layer, tokens in seen.items():
            if layer not in half:
                chosen = tokens.ids_TK.shape[1]
                half[layer] = LayerCounts.zero(experts, chosen, self.device)
            half[layer].add_(tokens)
            if tokens.tokens_T is not None:
                self.words.add_(layer, tokens, part)
        if self.resident is not None:
            self._add_held(of, seen, self.resident)

    def scores(self, domain: str) -> ExpertScores:
        """Token and gate scores of the experts in a domain, by which a selection is made."""
        of = self.domains[domain]
        return ExpertScores(
            {layer: of.layer(layer).sums.token for layer in natural_layers(self)},
            {layer: of.layer(layer).sums.gate for layer in natural_layers(self)},
            self.config.num_experts_per_tok or 0,
            of.tokens,
            of.loss()["loss"] or 0.0,
        )

    def _follow(self, seen: Mapping[int, Seen]) -> None:
        """Follow the words of a batch that are new, as far as its domain has room for them."""
        tokens_T = next(iter(seen.values())).tokens_T
        if tokens_T is not None:
            share = len(self.domains) / max(self.expected, len(self.domains))
            self.words.follow_(tokens_T, int(self.settings.token_ids * share))

    def _add_held(self, of: DomainCounts, seen: Mapping[int, Seen], resident: Selection) -> None:
        residency, experts, through = resident.residency(), self.config.experts, []
        for layer, tokens in seen.items():
            if layer not in of.held:
                held = residency.allowed_in(self.config, layer)
                ranked = [*held, *sorted(set(range(experts)) - set(held))]
                of.held[layer] = LayerCoverageSums(ranked, held, self.device)
            reach = of.held[layer].add_(Chosen(tokens.ids_TK, tokens.weights_TK))
            if layer < self.config.num_hidden_layers:
                through.append(reach)
        if of.everywhere is None:
            of.everywhere = ReachSums(torch.zeros(experts, dtype=torch.int64, device=self.device))
        of.everywhere.add_(reduce(Reach.further, through))


@dataclass(slots=True)
class Subjects:
    """The model that is looked at, one to compare it with, and what is switched off in both."""

    model: Transformer
    against: Transformer | None = None
    ablations: Ablations | None = None
    ablations_against: Ablations | None = None

    def check(self) -> None:
        """Refuse what cannot be looked at.

        Raises:
            ConfigError: if the model has no experts or is a slice, or the other is a slice or has
                another vocabulary.
        """
        check_natural(self.model)
        if self.against is None:
            return
        if self.against.config.experts:
            check_natural(self.against)
        sizes = self.model.config.vocab_size, self.against.config.vocab_size
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the other checkpoint has vocab_size={sizes[1]}, this one {sizes[0]}; compare "
                "with one of the same tokenizer"
            )

    @property
    def why_no_drift(self) -> str | None:
        """Why the routing of the two cannot be compared; None where it can."""
        if self.against is None:
            return "no other checkpoint was given"
        one, other = self.model.config, self.against.config
        if "hash" in (one.topk_method, other.topk_method):
            return "a hash decides for one of the two, and no router"
        same = ("experts", "num_experts_per_tok", "moe_layers")
        if any(getattr(one, name) != getattr(other, name) for name in same):
            return "the two have not the same layers of experts, or other numbers of them"
        return None


@torch.no_grad()
def pass_tokens(
    study: Study,
    domain: str,
    subjects: Subjects,
    batches: Iterable[Batch],
    on_tokens: OnTokens | None = None,
) -> None:
    """Pass the text of a domain once, through both models and everything that is switched off.

    Raises:
        DataError: if it holds no learned token.
    """
    of = study.domains.setdefault(domain, DomainCounts())
    for batch in batches:
        fed = batch.to(study.device)
        loss, seen = see_batch(subjects.model, fed)
        study.add_(domain, seen, _PARTS * sum(of.sizes) // study.settings.tokens)
        of.sizes.append(batch.learned)
        of.losses.append(float(loss.next_token))
        if subjects.against is not None:
            _compare(of, subjects, fed, seen)
        ablations = subjects.ablations, subjects.ablations_against
        for ablated, losses in zip(ablations, (of.losses, of.losses_against), strict=True):
            if ablated is not None and ablated.wants(domain):
                ablated.add_(domain, fed, losses[-1])
        if on_tokens is not None:
            on_tokens(domain, sum(of.sizes))
    if not sum(of.sizes):
        raise DataError(f"domain {domain!r} holds no learned token; give more text of it")


def pass_traces(study: Study, domain: str, traces: Iterable[Mapping[int, Seen]]) -> None:
    """Count recorded routing, up to the number of tokens that the settings say.

    Raises:
        DataError: if there is none.
    """
    left = study.settings.tokens
    for number, seen in enumerate(traces):
        fewer = {layer: _first(tokens, left) for layer, tokens in seen.items()}
        study.add_(domain, fewer, number)
        left -= len(next(iter(fewer.values())).ids_TK)
        if left <= 0:
            return
    if left == study.settings.tokens:
        raise DataError(f"domain {domain!r} holds no recorded token; give another folder")


def natural_layers(study: Study) -> tuple[int, ...]:
    """The layers that were counted, ascending: recorded routing has no prediction modules."""
    counted = next(iter(study.domains.values())).halves[0]
    return tuple(layer for layer in layers_with_experts(study.config) if layer in counted)


def _compare(of: DomainCounts, subjects: Subjects, batch: Batch, seen: Mapping[int, Seen]) -> None:
    """Pass the batch through the other checkpoint too."""
    assert subjects.against is not None
    loss, before = see_batch(subjects.against, batch)
    of.losses_against.append(float(loss.next_token))
    if subjects.why_no_drift is None:
        for layer in before.keys() & seen.keys():
            if layer not in of.drift:
                experts = subjects.model.config.experts
                of.drift[layer] = LayerDrift.zero(experts, batch.ids_BS.device)
            of.drift[layer].add_(before[layer], seen[layer])


def _first(seen: Seen, tokens: int) -> Seen:
    return Seen(seen.ids_TK[:tokens], seen.weights_TK[:tokens])


def _mean(sizes: list[int], sums: list[float]) -> dict[str, float | None]:
    if not sums:
        return {"loss": None, "stderr": None}
    return {"loss": sum(sums) / max(1, sum(sizes)), "stderr": standard_error(sizes, sums)}
