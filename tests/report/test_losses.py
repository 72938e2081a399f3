"""Curves keep their shape with fewer points; everything about a loss is on one axis."""

from hypothesis import given
from hypothesis import strategies as st

from moesaic.report.losses import loss, smoothed, thinned
from moesaic.report.sources import Sources

LOSSES = st.lists(st.floats(0, 10), min_size=1, max_size=300)


@given(LOSSES, st.integers(1, 50))
def test_a_thinned_curve_keeps_its_end_and_its_bounds(values: list[float], most: int):
    xs, ys = thinned(list(range(len(values))), values, most)
    assert len(xs) == len(ys) <= max(most, 1)
    assert xs[-1] == len(values) - 1
    assert min(values) - 1e-9 <= min(ys) <= max(ys) <= max(values) + 1e-9


@given(LOSSES, st.integers(1, 30))
def test_smoothing_keeps_both_ends_and_the_length(values: list[float], over: int):
    found = smoothed(values, over)
    assert len(found) == len(values)
    assert (found[0], found[-1]) == (values[0], values[-1])


def test_a_straight_line_is_smooth_already():
    assert smoothed([1.0, 2.0, 3.0, 4.0], 3) == [1.0, 2.0, 3.0, 4.0]


def test_training_held_out_and_merged_loss_share_an_axis(sources: Sources):
    found = loss(sources)
    assert found is not None
    [of_one] = [figure for figure in found.figures if figure.id == "loss-1"]
    names = [series["name"] for series in of_one.data["series"]]
    assert names[:3] == ["training, each step", "training", "lines, held out, as trained"]
    merged = next(one for one in of_one.data["series"] if one["name"] == "lines, all experts")
    assert merged["x"][0] == 0
    assert merged["y"][0] > merged["y"][1]
