"""Which variant to use, and why, for a reader who knows nothing else."""

from math import exp

from moesaic.report.blocks import Claim
from moesaic.report.estimate import Estimate
from moesaic.report.sources import Study
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

_NATS = 3
"""Decimals of what seeds decide."""


def study_claims(study: Study) -> list[Claim]:
    """What a study found out, for the verdict."""
    variants = variants_of(study.found)
    found = preferences(variants)
    advice = Claim("advice", _use(found), _sure(_at(found, 1.0), variants))
    return [_learned(variants), _forgot(variants), advice]


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
        f"right token becomes {ratio(-one.learned.value)} as probable on {listed(one.task)}, and "
        f"{_less(one)} probable elsewhere."
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
