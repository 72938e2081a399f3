"""Where the tokens of some domains go, and what experts are good for."""

from moesaic.report.ablation import ablation
from moesaic.report.blocks import Block, Claim, Prose, Section, section
from moesaic.report.estimate import Estimate, around
from moesaic.report.figures import Axis, Figure, Mark, Series, heat, intervals, lines
from moesaic.report.routed import ByLayer, Compared, Routed
from moesaic.report.sources import RoutingResult, Sources
from moesaic.report.words import interval, listed, number, percent, ratio, signed

_LAYERS_SHOWN = 3
"""Layers whose domains are laid side by side."""


def routing(sources: Sources) -> Section | None:
    """The charts of every routing analysis."""
    blocks: list[Block | None] = []
    for place, one in enumerate(sources.routings, start=1):
        blocks += _of_result(one, place, len(sources.routings) > 1)
    return section("routing", "Routing", blocks)


def routing_claims(result: RoutingResult) -> list[Claim]:
    """What changed in the loss of every domain against the other checkpoint, for the verdict."""
    return [
        _changed(name, domain.loss, domain.against, domain.tokens)
        for name, domain in result.found.domains.items()
        if domain.against is not None and domain.loss is not None
    ]


def changes(result: RoutingResult) -> list[Mark]:
    """The same, to be drawn."""
    return [
        Mark(name, rise(domain.against), result.name)
        for name, domain in result.found.domains.items()
        if domain.against is not None
    ]


def rise(against: Compared) -> Estimate:
    """By how much the loss is above the other checkpoint's."""
    return around(against.rise, against.rise_stderr, against.batches)


def _changed(name: str, loss: float, against: Compared, tokens: int) -> Claim:
    found = rise(against)
    finding = found.finding(higher_is_better=False)
    said = {
        "better": f"Loss on {name} fell from {number(against.loss)} to {number(loss)} nats per "
        f"token, {signed(found.value)}: the right token is {ratio(found.value)} as probable.",
        "worse": f"Loss on {name} rose from {number(against.loss)} to {number(loss)} nats per "
        f"token, {signed(found.value)}: the right token is {ratio(found.value)} as probable.",
    }
    text = said.get(
        finding,
        f"Cannot tell whether the loss on {name} changed: {number(against.loss)} before, "
        f"{number(loss)} after, {signed(found.value)} nats per token.",
    )
    detail = f"The same {tokens:,} held-out tokens before and after; {interval(found)}."
    return Claim(finding, text, detail, f"loss on {name}")


def _of_result(result: RoutingResult, place: int, is_named: bool) -> list[Block | None]:
    found, title = result.found, f"{result.name}: " if is_named else ""
    return [
        Prose(_about(found)),
        _all_loads(found, title, place),
        _by_domain(found, title, place),
        _overlap(found, title, place),
        _specialisation(found, title, place),
        _balance(found, title, place),
        _together(found, title, place),
        _coverage(found, title, place),
        *_drift(found, title, place),
        _alike(found, title, place),
        *ablation(found, title, place),
        *(Prose(f"Not measured: {what}, {why}.") for what, why in found.left_out.items()),
    ]


def _about(found: Routed) -> str:
    each = listed([f"{name} ({one.tokens:,} tokens)" for name, one in found.domains.items()])
    model = found.model
    return (
        f"{model.get('experts')} routed experts of each layer, of which a token goes to "
        f"{model.get('chosen')}, on {each}; each domain counts the same."
    )


def _all_loads(found: Routed, title: str, place: int) -> Figure | None:
    values = [[_hundred(one) for one in row] for row in found.all_loads.choices]
    return heat(
        f"routing-load-{place}",
        f"{title}share of the choices that fall on each expert, all domains together",
        f"An even load would be {_even(found)} everywhere.",
        [str(layer) for layer in found.layers],
        _experts(found),
        values,
        ("layer", "expert", "% of the choices"),
    )


def _by_domain(found: Routed, title: str, place: int) -> Figure | None:
    """Domains × experts, of a few layers."""
    many = len(found.layers)
    shown = sorted({0, many // 2, many - 1})[:_LAYERS_SHOWN]
    rows = [(at, name) for at in shown for name in found.loads]
    return heat(
        f"routing-domains-{place}",
        f"{title}which experts each domain goes to",
        f"Layers {listed([str(found.layers[at]) for at in shown])}; one row for each domain. An "
        f"expert that is dark in one row only is for that domain.",
        [f"{found.layers[at]} {name}" for at, name in rows],
        _experts(found),
        [[_hundred(one) for one in found.loads[name].choices[at]] for at, name in rows],
        ("layer and domain", "expert", "% of the choices"),
    )


def _overlap(found: Routed, title: str, place: int) -> Figure | None:
    overlap = found.overlap
    if overlap is None or len(overlap.domains) < 2:
        return None
    halves = [one["shared"] for one in overlap.halves.values() if one is not None]
    chance = f"; two halves of one domain share {number(min(halves), 1)} or more" if halves else ""
    return heat(
        f"routing-overlap-{place}",
        f"{title}of the {overlap.top} busiest experts, how many two domains share",
        f"Mean over layers. Drawn by lot they would share {number(overlap.by_chance, 1)}{chance}.",
        overlap.domains,
        overlap.domains,
        overlap.mean["shared"],
        ("", "", "experts shared"),
        written=1,
    )


def _specialisation(found: Routed, title: str, place: int) -> Figure | None:
    special = found.specialisation
    if special is None:
        return None
    series = [
        _by_layer("between domains", found, special.corrected, 0),
        _by_layer("between halves of one domain", found, special.halves, 7),
    ]
    return lines(
        f"routing-specialisation-{place}",
        f"{title}what the domain of a token tells about the expert it goes to",
        f"0 bits: nothing; {number(special.most, 1)} bits: every expert serves one domain only. "
        "Halves of one domain show what chance alone makes.",
        series,
        Axis("layer", "d"),
        Axis("bits", from_zero=True),
    )


def _balance(found: Routed, title: str, place: int) -> Figure | None:
    series = [
        _by_layer(name, found, load.max_violation, colour)
        for colour, (name, load) in enumerate(found.loads.items())
    ]
    return lines(
        f"routing-balance-{place}",
        f"{title}how much more the busiest expert has than the mean (MaxVio)",
        "0 is even; 1 means twice as many tokens as the mean.",
        series,
        Axis("layer", "d"),
        Axis("MaxVio", from_zero=True),
    )


def _together(found: Routed, title: str, place: int) -> Figure | None:
    """The layer whose experts go together most."""
    if found.coactivation is None:
        return None
    layers = found.coactivation.layers
    at = max(range(len(layers)), key=lambda layer: layers[layer].strongest)
    matrix = layers[at].matrix
    names = [str(expert) for expert in matrix["experts"]]
    shares = [
        [None if row == column else _hundred(share) for column, share in enumerate(shares)]
        for row, shares in enumerate(matrix["share"])
    ]
    return heat(
        f"routing-together-{place}",
        f"{title}experts chosen together in layer {found.layers[at]}",
        "Of the tokens that chose the expert of the row, how many chose that of the column too. "
        "The layer and the experts that go together most.",
        names,
        names,
        shares,
        ("expert", "and expert", "% of the tokens"),
    )


def _coverage(found: Routed, title: str, place: int) -> Figure | None:
    if found.coverage is None:
        return None
    kinds = (("choices", "choices"), ("gate values", "gate"), ("tokens, in a layer", "tokens"))
    marks = [
        Mark(name, Estimate(100 * (of.mean[key] or 0.0)), label, colour)
        for name, of in found.coverage.domains.items()
        for colour, (label, key) in enumerate(kinds)
    ]
    return intervals(
        f"routing-coverage-{place}",
        f"{title}what the resident experts hold of each domain’s routing",
        "Mean over layers. Tokens: those that find all their experts there.",
        marks,
        Axis("per cent", from_zero=True),
    )


def _drift(found: Routed, title: str, place: int) -> list[Block | None]:
    drift = found.drift
    if drift is None:
        return []
    layers = [str(layer) for layer in drift.layers]
    series = [
        Series(name, drift.layers, [100 * (one or 0.0) for one in of.choices], colour, label=name)
        for colour, (name, of) in enumerate(drift.domains.items())
    ]
    moved = heat(
        f"routing-moved-{place}",
        f"{title}how far each expert’s weights moved",
        "Length of the change over the length before. What was not trained is 0.",
        layers,
        _experts(found),
        [[_hundred(one) for one in row] for row in drift.moved or ()],
        ("layer", "expert", "% of its length"),
    )
    changed = lines(
        f"routing-drift-{place}",
        f"{title}choices that fall on another expert than in the other checkpoint",
        "The same tokens in both; what training moved in the layers below shows further up.",
        series,
        Axis("layer", "d"),
        Axis("per cent of the choices", from_zero=True),
    )
    return [changed, moved]


def _alike(found: Routed, title: str, place: int) -> Figure | None:
    if found.weights is None:
        return None
    kinds = (("experts", found.weights.experts), ("router directions", found.weights.router))
    series: list[Series] = []
    for colour, (name, similar) in enumerate(kinds):
        if similar is None:
            continue
        series.append(_by_layer(f"{name}, mean", found, similar.mean, colour))
        nearest = tuple(quantiles[-1] for quantiles in similar.quantiles)
        series.append(_by_layer(f"{name}, nearest pair", found, nearest, colour, dashed=True))
    return lines(
        f"routing-alike-{place}",
        f"{title}how alike the experts of a layer are",
        "Cosine between the weights of two experts, over all pairs; 1: the same, 0: nothing alike.",
        series,
        Axis("layer", "d"),
        Axis("cosine"),
    )


def _by_layer(
    name: str, found: Routed, values: ByLayer, colour: int, dashed: bool = False
) -> Series:
    known = [(at, one) for at, one in zip(found.layers, values, strict=False) if one is not None]
    xs, ys = [at for at, _ in known], [one for _, one in known]
    return Series(name, xs, ys, colour, "dashed" if dashed else "line", name)


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _experts(found: Routed) -> list[str]:
    return [str(expert) for expert in range(len(found.all_loads.choices[0]))]


def _even(found: Routed) -> str:
    return percent(1 / len(found.all_loads.choices[0]), 2)
