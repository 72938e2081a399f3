"""The first thing on the page: did it help, by how much, how sure."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from moesaic.report.advice import study_claims
from moesaic.report.blocks import Claim, Finding, Prose, Section, section
from moesaic.report.data import stops
from moesaic.report.estimate import Estimate, estimate
from moesaic.report.forms import Against, Retained, Score, TaskResult
from moesaic.report.routing import routing_claims
from moesaic.report.runs import base_of, held_out, is_over, is_restricted, seed_free, task_domains
from moesaic.report.sources import Evaluation, Merge, Run, Sources
from moesaic.report.words import interval, listed, number, percent, plural, points, ratio, signed

_ORDER: tuple[Finding, ...] = ("better", "worse", "unclear", "unknown")
_SEVERAL = 8
"""Sentences about runs."""


class Move(NamedTuple):
    """Held-out loss of one domain."""

    since: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


def verdict(sources: Sources) -> Section | None:
    """The sentences that answer the question the page is read for."""
    held_against = [claim for one in sources.routings for claim in routing_claims(one)]
    held_against += [claim for one in sources.judged for claim in _of_evaluation(one)]
    held_against.sort(key=lambda claim: _ORDER.index(claim.finding))
    claims = [claim for study in sources.studies for claim in study_claims(study)]
    claims += _summary(held_against) + held_against
    if all(claim.finding == "unknown" for claim in claims):  # nothing surer
        claims += [claim for one in sources.merges for claim in _of_merge(one)]
        claims += _of_runs(sources.runs)
    claims = [*stops(sources), *claims]
    if not claims:
        return None
    return section("verdict", "Verdict", [*claims, _how_to_read(claims)])


def _summary(claims: Sequence[Claim]) -> list[Claim]:
    """All comparisons in one sentence, where there are several."""
    kinds: dict[Finding, str] = {
        "better": "Better: {}.",
        "worse": "Worse: {}.",
        "unclear": "Cannot tell: {}.",
    }
    found: dict[Finding, list[str]] = {
        kind: [one.about for one in claims if one.finding == kind] for kind in kinds
    }
    if sum(map(len, found.values())) < 2:
        return []
    told = [kinds[kind].format(listed(names)) for kind, names in found.items() if names]
    whole: Finding = "mixed" if found["better"] and found["worse"] else _first(found)
    return [Claim(whole, " ".join(told))]


def _first(found: Mapping[Finding, Sequence[str]]) -> Finding:
    return next(kind for kind, names in found.items() if names)


def _how_to_read(claims: Sequence[Claim]) -> Prose:
    text = (
        "“Cannot tell” means that the 95 % interval includes no change: the difference may be "
        "chance. "
    )
    if any(claim.finding == "unknown" for claim in claims):
        text += (
            "“No interval” means that one measurement was made before and one after, which do not "
            "say by how much they would differ by chance: several seeds, or an evaluation with a "
            "base, do. "
        )
    return Prose(text + "Losses are in nats per token; lower is better.")


def share(score: Score) -> bool:
    """Whether a score is a share of the items, to be shown in per cent."""
    ends = [end for end in (score.value, score.low, score.high) if end is not None]
    return score.higher_is_better and all(0 <= end <= 1 for end in ends)


def titled(name: str, task: TaskResult) -> str:
    """A task's name, with the text where that is all that it is about."""
    data = task.description.get("data")
    return f"{name.partition('_')[0]} of {data}" if isinstance(data, str) else name


def compared(against: Against) -> Estimate:
    """The difference to the base."""
    return Estimate(against.difference, against.low, against.high)


def _of_evaluation(evaluation: Evaluation) -> list[Claim]:
    """A sentence for each task that was held against a base."""
    claims = [
        _of_task(titled(name, task), task, next(iter(task.metrics)))
        for name, task in evaluation.results.tasks.items()
        if task.against and next(iter(task.metrics)) in task.against
    ]
    if claims:
        return claims
    quoted = [_quoted(titled(name, task), task) for name, task in evaluation.results.tasks.items()]
    return [
        Claim(
            "unknown",
            f"{evaluation.name}: {'; '.join(quoted)}.",
            "Not held against a base, so nothing is said of what changed.",
        )
    ]


def _quoted(name: str, task: TaskResult) -> str:
    metric, score = next(iter(task.metrics.items()))
    shown = percent(score.value) if share(score) else number(score.value)
    return f"{name} {shown} ({metric}, n = {task.n:,})"


def _of_task(name: str, task: TaskResult, metric: str) -> Claim:
    assert task.against is not None
    score, against = task.metrics[metric], task.against[metric]
    found = compared(against)
    is_share = share(score)
    base, value = (percent(one) if is_share else number(one) for one in (against.base, score.value))
    change = points(found.value) if is_share else signed(found.value)
    bounds = interval(found, 1, 100) if is_share else interval(found)
    finding = found.finding(score.higher_is_better)
    if against.verdict == "cannot tell apart":  # by its test, which may be stricter
        finding = "unclear"
    said: dict[Finding, str] = {
        "better": f"{name} got better: {base} before, {value} after, {change}.",
        "worse": f"{name} got worse: {base} before, {value} after, {change}.",
        "unclear": f"Cannot tell whether {name} changed: {base} before, {value} after, {change}.",
        "unknown": f"{name}: {base} before, {value} after, {change}.",
    }
    p = "" if against.p is None else f", p = {against.p:.2g}"
    test = f" ({against.test})" if against.test else ""
    detail = f"{metric}, the same {task.n:,} items before and after; {bounds}{p}{test}."
    return Claim(finding, said[finding], detail, name)


def _of_merge(merge: Merge) -> list[Claim]:
    return [_of_retained(data, one) for data, one in merge.record.retained.items()]


def _of_retained(data: str, one: Retained) -> Claim:
    rise = one.after - one.before
    return Claim(
        "unknown",
        f"Merging changed the loss on {data} from {number(one.before)} to {number(one.after)} "
        f"nats per token, {signed(rise)}: the right token is {ratio(rise)} as probable.",
        f"Measured by the merge itself on {one.tokens:,} tokens.",
    )


def _of_runs(runs: Sequence[Run]) -> list[Claim]:
    """What held-out loss did in every run, repetitions with other seeds together."""
    groups: list[list[Run]] = []
    for run in runs:
        alike = (group for group in groups if seed_free(group[0]) == seed_free(run))
        group = next(alike, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    claims = [claim for group in groups for claim in _of_group(group, runs)]
    return claims[:_SEVERAL]


def _of_group(group: Sequence[Run], runs: Sequence[Run]) -> list[Claim]:
    """A sentence on the task of a run, and one on what it was not trained on."""
    task = task_domains(group[0])
    rest = [domain for domain in held_out(group[0]) if domain not in task]
    claims = (
        _of_domains(group, "on what it learned", task, runs),
        _of_domains(group, "on what it did not learn", rest, runs),
    )
    return [claim for claim in claims if claim is not None]


def _of_domains(
    group: Sequence[Run], what: str, domains: Sequence[str], runs: Sequence[Run]
) -> Claim | None:
    """From before to after, over domains and repetitions."""
    moves = [_moves(run, domains, runs) for run in group]
    shared = [domain for domain in domains if all(domain in move for move in moves)]
    if not shared:
        return None
    text = "; ".join(_move(domain, [move[domain] for move in moves]) for domain in shared)
    changes = [fmean(move[domain].change for domain in shared) for move in moves]
    found, first = estimate(changes), group[0]
    state = "" if is_over(first) else f" (step {_done(first)} of {first.config['steps']})"
    held = (
        ", among the experts that training held; merged it differs" if is_restricted(first) else ""
    )
    detail = f"Nats per token, {moves[0][shared[0]].since} to its last evaluation{held}."
    if len(group) > 1:
        mean = f"mean over {'domains and ' if len(shared) > 1 else ''}{plural(len(group), 'seed')}"
        detail += f" Change, {mean}: {signed(found.value)}; {interval(found)}."
    names = listed([run.name for run in group])
    finding = found.finding(higher_is_better=False)
    return Claim(finding, f"{names}{state}, held-out loss {what}: {text}.", detail)


def _done(run: Run) -> int:
    steps = run.record.of("step")
    return steps[-1]["step"] if steps else 0


def _move(domain: str, moves: Sequence[Move]) -> str:
    before, after = fmean(move.before for move in moves), fmean(move.after for move in moves)
    return f"{domain} {number(before)} to {number(after)} ({signed(after - before)})"


def _moves(run: Run, domains: Sequence[str], runs: Sequence[Run]) -> dict[str, Move]:
    """What became of the loss on each domain; the loss before is the base's if that is here."""
    found, base = held_out(run), base_of(run, runs)
    of_base = {} if base is None else held_out(base)
    here, there = ((one.config.get("evaluation") or {}).get("rows") for one in (run, base or run))
    rows = "" if here == there else f" ({there} rows there, {here} here)"
    moves: dict[str, Move] = {}
    for domain in (one for one in domains if one in found):
        begin, last = found[domain][0], found[domain][-1]
        if domain in of_base:
            since = f"from the end of the base’s run{rows}"
            moves[domain] = Move(since, of_base[domain][-1][1], last[1])
        elif begin[0] < last[0]:
            moves[domain] = Move(f"from step {begin[0]}", begin[1], last[1])
    return moves
