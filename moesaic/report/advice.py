"""Which variant to use, and why, for a reader who knows nothing else."""

from math import exp

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Claim, Grid, Prose, Section, section
from moesaic.report.estimate import Estimate
from moesaic.report.figures import Axis, Mark, intervals, tradeoff
from moesaic.report.read import Sources, Study
from moesaic.report.study import Preference, Variant, difference, net, preferences, variants_of
from moesaic.report.words import (
    interval,
    listed,
    number,
    percent,
    plural,
    plus_minus,
    ratio,
    signed,
)
from moesaic.units import count

_NATS = 3
"""Decimals of what seeds decide."""


def recommendation(sources: Sources) -> Section | None:
    """The section that compares variants."""
    blocks = [block for study in sources.studies for block in _of_study(study)]
    return section("recommendation", "Which variant to use", blocks)


def study_claims(study: Study) -> list[Claim]:
    """What a study found out, for the verdict."""
    variants = variants_of(study.found)
    found = preferences(variants)
    advice = Claim("advice", _use(found), _sure(_at(found, 1.0), variants))
    return [_learned(variants), _forgot(variants), advice]


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
    return [
        Prose(_setting(study, variants)),
        Grid(_choice(found)),
        tradeoff_figure,
        Grid(_numbers(variants)),
        _trained_and_merged(variants),
        _rises(variants),
        Prose(_limits(study, variants)),
    ]


def _setting(study: Study, variants: list[Variant]) -> str:
    base, seeds = study.found.base, max(len(one.runs) for one in variants)
    setting = base.setting
    model = f" ({setting['model']})" if "model" in setting else ""
    of = f" {setting['trained']} routed experts of each layer" if "trained" in setting else ""
    return (
        f"From one base{model}, trained on {listed(variants[0].retained)} for {base.base_steps:,} "
        f"steps, every variant learned {listed(variants[0].task)} for {base.steps:,} steps of "
        f"{base.rows} × {base.seq_len} tokens{' with the same' + of if of else ''}, "
        f"{plural(seeds, 'seed')} each. What differs is what becomes of the other experts while "
        "it trains. Learned is by how much the loss on held-out text of the task fell; forgotten "
        "is by how much it rose on the other domains."
    )


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
        Column("peak", "memory over\nstart, MiB", lambda value: f"{value / 2**20:,.0f}"),
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


def _at(found: list[Preference], weight: float) -> Preference:
    return next(one for one in found if one.high is None or weight < one.high)


def _use(found: list[Preference]) -> str:
    """Which variant to take, for a reader who asks for one, and for one who fears to forget."""
    chosen, most, careful = _at(found, 1.0), found[0], found[-1]
    one = chosen.variant
    same = listed([other.name for other in chosen.equals], "or")
    alike = f" (or {same}: no difference is seen)" if same else ""
    text = (
        f"Use {one.name}{alike} if the task and what the model knew before count the same: the "
        f"right token becomes {ratio(-one.learned.value)} as probable on {listed(one.task)} and "
        f"{_less(one)} elsewhere."
    )
    if careful.variant.name != one.name:
        learned = ratio(-careful.variant.learned.value)
        text += (
            f" Use {careful.variant.name} to forget least: {learned} and {_less(careful.variant)}."
        )
    if most.variant.name != one.name:
        learned = ratio(-most.variant.learned.value)
        text += f" Use {most.variant.name} only if forgetting does not matter: {learned} and "
        text += f"{_less(most.variant)}."
    return text


def _less(variant: Variant) -> str:
    """What forgetting does to the probability of the right token."""
    lost = 1 - exp(-variant.forgot.value)
    return f"{percent(lost, 0)} less" if lost > 0 else f"{percent(-lost, 0)} more"


def _sure(chosen: Preference, variants: list[Variant]) -> str:
    """How sure the choice at weight 1 is: against the next best."""
    same = {chosen.variant.name, *(one.name for one in chosen.equals)}
    others = [one for one in variants if one.name not in same]
    if not others:
        return "All variants do the same, as far as seeds tell."
    nets = {one.name: net(one, 1.0) for one in variants}
    second = max(others, key=lambda one: sum(nets[one.name]) / len(nets[one.name]))
    lead = difference(nets[chosen.variant.name], nets[second.name])
    sure = {
        True: "cannot tell the two apart where both count exactly the same",
        False: "more than chance",
        None: "but from one seed only, so it may be chance",
    }
    return (
        f"Learned less forgotten, {chosen.variant.name} leads {second.name} by "
        f"{signed(lead.value, _NATS)} nats ({interval(lead, _NATS)}): {sure[lead.is_zero]}."
    )


def _learned(variants: list[Variant]) -> Claim:
    task = listed(variants[0].task)
    findings = {one.name: one.learned.finding(higher_is_better=True) for one in variants}
    better = [one for one in variants if findings[one.name] == "better"]
    unsure = [name for name, finding in findings.items() if finding in ("unclear", "unknown")]
    least, most = _ends([one.learned for one in variants])
    text = (
        f"All {len(variants)} variants learn {task}: merged, the loss falls by {least} to {most} "
        "nats per token."
        if len(better) == len(variants)
        else f"{len(better)} of {len(variants)} variants learn {task}"
        + (f"; of {listed(unsure)} it cannot be told." if unsure else ".")
    )
    whole = "better" if better else "unclear" if unsure else "worse"
    seeds = plural(max(len(one.runs) for one in variants), "seed")
    detail = f"Intervals over {seeds} exclude 0" + (" but for those named." if unsure else ".")
    return Claim(whole, text, detail if better else "")


def _forgot(variants: list[Variant]) -> Claim:
    found = {one.name: one.forgot.finding(higher_is_better=False) for one in variants}
    kept = [name for name, finding in found.items() if finding in ("better", "unclear")]
    least, most = _ends([one.forgot for one in variants])
    retained = listed(variants[0].retained)
    text = f"Loss of what was known before ({retained}) rises by {least} to {most} nats per token."
    if kept:
        text += f" Nothing is seen to be lost with {listed(kept)}."
    gaps = max(variants, key=lambda one: one.gap.value)
    detail = (
        f"The loss seen while training misleads most for {gaps.name}: merging adds "
        f"{plus_minus(gaps.gap, _NATS)} nats."
    )
    worst = "worse" if "worse" in found.values() else "unclear" if kept else "unknown"
    return Claim(worst, text, detail)


def _ends(found: list[Estimate]) -> tuple[str, str]:
    values = sorted(one.value for one in found)
    return number(values[0], _NATS), number(values[-1], _NATS)


def _limits(study: Study, variants: list[Variant]) -> str:
    hardware = study.found.hardware
    seeds = max(len(one.runs) for one in variants)
    tuned = study.found.base.setting.get("note")
    return (
        f"What this does not say: base and held-out text are the same in all runs, and the "
        f"intervals over {plural(seeds, 'seed')} say how much the order of the data matters, not "
        "how another base, task or size would come out. "
        + (f"{tuned} " if tuned else "")
        + "What a variant needs in memory on a larger model is planned by moesaic plan MODEL. "
        f"Measured on {hardware.get('cpu')}, {hardware.get('cores')} cores, "
        f"{study.found.threads} threads; speeds of one machine, "
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
