"""The section that compares variants: what each learned, forgot and cost."""

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Grid, Prose, Section, section
from moesaic.report.estimate import Estimate
from moesaic.report.explain import explained
from moesaic.report.figures import Axis, Mark, intervals, tradeoff
from moesaic.report.sources import Sources, Study
from moesaic.report.study import Preference, Variant, preferences, variants_of
from moesaic.report.words import listed, number, plural, plus_minus
from moesaic.units import count

_NATS = 3
"""Decimals of what seeds decide."""


def recommendation(sources: Sources) -> Section | None:
    """The section that compares variants."""
    blocks = [block for study in sources.studies for block in _of_study(study)]
    return section("recommendation", "Which variant to use", blocks)


def _of_study(study: Study) -> list[Block | None]:
    found, variants = preferences(variants_of(study.found)), variants_of(study.found)
    tradeoff_figure = tradeoff(
        "learned-forgotten",
        "What each variant learned and what it forgot",
        "Better is right and down. Large points are means, small ones single seeds; whiskers are "
        "95 % intervals. Losses are of held-out text, with the model merged, as it is used.",
        {one.name: (one.learned, one.forgot) for one in variants},
        {one.name: list(zip(one.each_learned, one.each_forgot, strict=True)) for one in variants},
        Axis(f"learned: fall of the loss on {listed(variants[0].task)}, nats per token"),
        Axis("forgotten: rise of the loss on the other domains, nats", from_zero=True),
    )
    words = explained(study)
    return [
        Prose(_setting(study, variants)),
        None if words is None else Grid(words),
        Grid(_choice(found)),
        tradeoff_figure,
        Grid(_numbers(variants)),
        _trained_and_merged(variants),
        _rises(variants),
        Prose(_limits(study, variants)),
    ]


def _setting(study: Study, variants: list[Variant]) -> str:
    """The experiment in a paragraph."""
    base, seeds = study.found.base, max(len(one.runs) for one in variants)
    model = f" ({base.setting['model']})" if "model" in base.setting else ""
    return (
        f"From one base{model}, trained on {listed(variants[0].retained)} for {base.base_steps:,} "
        f"steps, every variant learned {listed(variants[0].task)} for {base.steps:,} steps of "
        f"{base.rows} × {base.seq_len} tokens, {plural(seeds, 'seed')} each{_trained(study)}. "
        "What differs is what becomes of the rest of the model meanwhile. Learned is by how much "
        "the loss on held-out text of the task fell; forgotten is by how much it rose on the "
        "other domains."
    )


def _trained(study: Study) -> str:
    """What all variants train, but for those that train everything."""
    experts = study.found.base.setting.get("trained")
    if experts is None:
        return ""
    whole = [
        name
        for name, one in study.found.variants.items()
        if "esft" in one.setting and one.setting["esft"] is None
    ]
    every = f" ({listed(whole)}: everything)" if whole else ""
    return f", training the same {experts} routed experts of each layer{every}"


def _choice(found: list[Preference]) -> Table:
    """The variant for every weight of forgetting."""

    def weight(one: Preference) -> str:
        if one.high is None:
            return f"more than {number(one.low, 1)} nats"
        if not one.low:
            return f"less than {number(one.high, 1)} nats"
        return f"{number(one.low, 1)} to {number(one.high, 1)} nats"

    rows = [
        Row(
            {
                "weight": weight(one),
                "use": one.variant.name,
                "learned": one.variant.learned,
                "forgot": one.variant.forgot,
                "equals": listed([other.name for other in one.equals]) or None,
            },
            strong=one.low <= 1.0 and (one.high is None or one.high > 1.0),
        )
        for one in found
    ]
    columns = (
        Column("weight", "to keep one nat of the rest\nyou would give up, of the task", left=True),
        Column("use", "use", left=True),
        Column("learned", "it learns\nnats", _shown),
        Column("forgot", "it forgets\nnats", _shown),
        Column("equals", "not told apart from it", left=True),
    )
    note = (
        "Of two variants the better is the one with more learned, less what it forgot times what "
        "forgetting is worth to you. In bold: where both count the same."
    )
    return Table(
        "choice",
        "Which variant is best depends on what forgetting costs you",
        columns,
        tuple(rows),
        note,
    )


def _numbers(variants: list[Variant]) -> Table:
    rows = tuple(
        Row(
            {
                "variant": one.name,
                "as_trained": one.as_trained,
                "merged": one.merged,
                "gap": one.gap,
                "learned": one.learned,
                "forgot": one.forgot,
                "speed": _speeds(one),
                "peak": one.peak_bytes,
            }
        )
        for one in variants
    )
    columns = (
        Column("variant", "variant", left=True),
        Column("as_trained", "task loss,\nas trained", _shown),
        Column("merged", "task loss,\nmerged", _shown),
        Column("gap", "lost by\nmerging", _shown_signed),
        Column("learned", "learned", _shown),
        Column("forgot", "forgotten", _shown_signed),
        Column("speed", "training,\nk tok/s"),
        Column("peak", "memory,\nMiB", lambda value: f"{value / 2**20:,.0f}"),
    )
    note = (
        "Nats per token, mean over seeds ± half the 95 % interval (Student's t). As trained: the "
        "router chooses among what training held; merged: among all experts. Speed: median step "
        "of the slowest and of the fastest seed; memory: the most of any seed, above what "
        "the process took before it loaded the model."
    )
    return Table("variants", "Every variant in numbers", columns, rows, note)


def _trained_and_merged(variants: list[Variant]) -> Block | None:
    marks = [
        Mark(one.name, found, group, colour)
        for one in variants
        for colour, (group, found) in enumerate(
            (("as trained", one.as_trained), ("merged", one.merged)), start=1
        )
    ]
    return intervals(
        "masked-merged",
        f"Loss on {listed(variants[0].task)}: while it trains, and merged",
        "Further left is better. A long line means that the loss seen in training promises more "
        "than the merged model keeps.",
        marks,
        Axis("held-out loss, nats per token"),
        joined=True,
    )


def _rises(variants: list[Variant]) -> Block | None:
    marks = [
        Mark(one.name, one.rise(domain), domain, colour)
        for one in variants
        for colour, domain in enumerate(one.retained)
    ]
    return intervals(
        "retention-by-domain",
        "What each variant forgot, by domain",
        "Rise of the held-out loss against the base; 0 is nothing lost, further right is worse. "
        "0.1 nats: the right token becomes a tenth less probable.",
        marks,
        Axis("rise of the loss, nats per token"),
        reference=0.0,
    )


def _limits(study: Study, variants: list[Variant]) -> str:
    hardware = study.found.hardware
    seeds = max(len(one.runs) for one in variants)
    tuned = study.found.base.setting.get("note")
    return (
        f"What this does not say: base and held-out text are the same in all runs, and the "
        f"intervals over {plural(seeds, 'seed')} say how much the order of the data matters, not "
        "how another base, task or size would come out. "
        + (f"{tuned} " if tuned else "")
        + f"Measured on {hardware.get('cpu')}, {hardware.get('cores')} cores, "
        f"{plural(study.found.threads, 'thread')}; speeds of one machine, "
        f"{count(study.found.base.rows * study.found.base.seq_len)} tokens a step."
    )


def _speeds(variant: Variant) -> str:
    """Thousands of tokens per second of the slowest seed and of the fastest."""
    speeds = sorted(run.tokens_per_s / 1000 for run in variant.runs)
    ends = dict.fromkeys((number(speeds[0], 1), number(speeds[-1], 1)))
    return " to ".join(ends)


def _shown(found: Estimate) -> str:
    return plus_minus(found, _NATS)


def _shown_signed(found: Estimate) -> str:
    return plus_minus(found, _NATS, is_signed=True)
