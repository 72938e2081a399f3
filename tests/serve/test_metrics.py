"""The figures that Prometheus reads."""

from moesaic.infer.expert_load import LayerLoad
from moesaic.infer.meter import Meter, Stats
from moesaic.infer.offload import ExpertCounts
from moesaic.infer.pace import Counts
from moesaic.serve.metrics import exposition


def told(experts: ExpertCounts | None) -> list[str]:
    return exposition(Stats(0, 0, 8, 8, 0, Meter(), experts)).splitlines()


def test_a_cache_of_experts_is_told_of_where_there_is_one():
    counts = ExpertCounts(asked=10, held=5, guessed=4, useful=3, bytes_read=700, waited_s=0.5)
    lines = told(counts)
    for line in (
        'moesaic_experts_total{how="there"} 5',
        'moesaic_experts_total{how="guessed"} 3',
        'moesaic_experts_total{how="waited_for"} 2',
        'moesaic_expert_guesses_total{guess="right"} 3',
        'moesaic_expert_guesses_total{guess="wrong"} 1',
        "moesaic_expert_hit_ratio 0.5",
        "moesaic_expert_bytes_total 700",
        "moesaic_expert_wait_seconds_total 0.5",
    ):
        assert line in lines
    assert not [line for line in told(None) if "expert" in line]


def test_drafts_are_counted_and_those_that_were_right():
    meter = Meter(drafts=Counts(passes=9, tokens=14, drafts=7, accepted=5))
    lines = exposition(Stats(0, 0, 8, 8, 0, meter)).splitlines()
    assert "moesaic_drafts_total 7" in lines
    assert "moesaic_drafts_accepted_total 5" in lines


def test_loads_of_experts_are_three_series_per_layer():
    load = (LayerLoad(1, 600, 1.5, 7), LayerLoad(2, 600, 2.25, 0))
    lines = exposition(Stats(0, 0, 8, 8, 0, Meter(), load=load)).splitlines()
    for line in (
        'moesaic_expert_tokens_total{layer="1"} 600',
        'moesaic_expert_imbalance{layer="2"} 2.2500',
        'moesaic_expert_hottest{layer="1"} 7',
    ):
        assert line in lines
    assert sum("layer=" in line for line in lines) == 6
