"""What the engine did, in the text form that Prometheus reads."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from moesaic.infer.expert_load import LayerLoad
from moesaic.infer.meter import Histogram, Stats
from moesaic.infer.offload import ExpertCounts

KIND = "text/plain; version=0.0.4; charset=utf-8"
"""The content type."""


def exposition(stats: Stats) -> str:
    """All figures as lines.

    Source: Prometheus text-based exposition format 0.0.4.
    """
    meter = stats.meter
    lines = [
        *_gauge("requests_waiting", "Requests that wait for room.", stats.waiting),
        *_gauge("requests_running", "Requests that are being answered.", stats.running),
        *_gauge("cache_blocks", "Blocks of the cache.", stats.blocks),
        *_gauge("cache_blocks_free", "Blocks that a new request could have.", stats.blocks_free),
        *_gauge(
            "cache_blocks_kept", "Blocks kept for prompts that begin alike.", stats.blocks_kept
        ),
        *_counter("steps_total", "Passes over all running requests.", {"": meter.steps}),
        *_counter("requests_total", "Requests by how they ended.", meter.requests, "ending"),
        *_counter("tokens_total", "Tokens by what was done with them.", meter.tokens, "kind"),
        *_counter("drafts_total", "Drafts that were checked.", {"": meter.drafts.drafts}),
        *_counter("drafts_accepted_total", "Drafts that were right.", {"": meter.drafts.accepted}),
        *_histogram("first_token_seconds", "From a request to its first token.", meter.first_s),
        *_histogram("next_token_seconds", "From a token to the next.", meter.between_s),
        *(_experts(stats.experts) if stats.experts else ()),
        *(_load(stats.load) if stats.load else ()),
    ]
    return "\n".join(lines) + "\n"


def _load(layers: Sequence[LayerLoad]) -> Iterator[str]:
    """Three series per layer, however many experts it has."""
    pairs = {str(each.layer): each.pairs for each in layers}
    told = "Tokens that experts of a layer received, together."
    yield from _counter("expert_tokens_total", told, pairs, "layer")
    yield from _head("expert_imbalance", "Greatest load of an expert over the mean.", "gauge")
    for each in layers:
        yield f'moesaic_expert_imbalance{{layer="{each.layer}"}} {each.imbalance:.4f}'
    yield from _head("expert_hottest", "The expert that received most tokens.", "gauge")
    for each in layers:
        yield f'moesaic_expert_hottest{{layer="{each.layer}"}} {each.hottest}'


def _experts(counts: ExpertCounts) -> Iterator[str]:
    """Of a server whose memory does not hold every expert."""
    needed = {
        "there": counts.held,
        "guessed": counts.useful,
        "waited_for": counts.asked - counts.held - counts.useful,
    }
    yield from _counter("experts_total", "Experts that were needed, by how.", needed, "how")
    guesses = {"right": counts.useful, "wrong": counts.guessed - counts.useful}
    yield from _counter("expert_guesses_total", "Experts read on a guess.", guesses, "guess")
    yield from _gauge("expert_hit_ratio", "Share there when needed.", counts.hit_rate)
    read = {"": counts.bytes_read}
    yield from _counter("expert_bytes_total", "Bytes of experts that were read.", read)
    waited = {"": counts.waited_s}
    yield from _counter("expert_wait_seconds_total", "Seconds in wait for experts.", waited)


def _head(name: str, told: str, kind: str) -> list[str]:
    return [f"# HELP moesaic_{name} {told}", f"# TYPE moesaic_{name} {kind}"]


def _gauge(name: str, told: str, value: float) -> list[str]:
    return [*_head(name, told, "gauge"), f"moesaic_{name} {value}"]


def _counter(name: str, told: str, values: Mapping[str, float], label: str = "") -> list[str]:
    lines = _head(name, told, "counter")
    for key, value in dict(values).items():
        tag = f'{{{label}="{key}"}}' if label else ""
        lines.append(f"moesaic_{name}{tag} {value}")
    return lines


def _histogram(name: str, told: str, histogram: Histogram) -> Iterator[str]:
    yield from _head(name, told, "histogram")
    sums = list(accumulate(histogram.counts))
    for border, n in zip([*map(str, histogram.borders), "+Inf"], sums, strict=True):
        yield f'moesaic_{name}_bucket{{le="{border}"}} {n}'
    yield f"moesaic_{name}_sum {histogram.total:.6f}"
    yield f"moesaic_{name}_count {sums[-1]}"
