"""Experts are placed so that no device waits long for another."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.balance.placement import (
    Devices,
    Slots,
    balancedness,
    count_copies,
    expert_locations,
    pack,
    place,
    read_loads,
    without_copies,
)
from moesaic.errors import ConfigError, DataError

EXAMPLE = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
"""Loads of two layers in the README of EPLB."""
PUBLISHED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)
"""What EPLB places on 8 devices of 2 nodes, with 4 groups, in the same README."""
LOADS = st.lists(st.integers(0, 1000), min_size=6, max_size=6)


@pytest.mark.parametrize(("loads", "published"), [*zip(EXAMPLE, PUBLISHED, strict=True)])
def test_the_published_example_is_at_least_as_even_as_published(loads: Slots, published: Slots):
    slots = place(loads, Devices(devices=8, redundant=4, nodes=2, groups=4))
    assert balancedness(loads, slots, 8) >= balancedness(loads, published, 8)
    assert sorted(slots) == sorted(published)
    nodes = [{expert // 3 for expert in part} for part in (slots[:8], slots[8:])]
    assert nodes[0].isdisjoint(nodes[1])


def partitions(items: tuple[int, ...], size: int) -> list[list[tuple[int, ...]]]:
    """Every way to divide items among bins of this size."""
    if not items:
        return [[]]
    return [
        [(items[0], *rest), *others]
        for rest in combinations(items[1:], size - 1)
        for others in partitions(tuple(i for i in items[1:] if i not in rest), size)
    ]


@given(LOADS)
def test_packing_is_close_to_the_best_there_is(loads: list[int]):
    def fullest(bins: list[tuple[int, ...]] | list[list[int]]) -> int:
        return max(sum(loads[item] for item in each) for each in bins)

    best = min(fullest(bins) for bins in partitions(tuple(range(6)), 2))
    assert fullest(pack(loads, 3)) == best  # of two each, the heaviest with the lightest is best
    best = min(fullest(bins) for bins in partitions(tuple(range(6)), 3))
    assert best <= fullest(pack(loads, 2)) <= 7 / 6 * best  # Graham's bound for two bins


@given(LOADS, st.integers(0, 4))
def test_no_other_copies_have_a_less_busy_busiest(loads: list[int], redundant: int):
    def busiest(copies: tuple[int, ...] | list[int]) -> float:
        return max(load / n for load, n in zip(loads, copies, strict=True))

    ways = combinations(range(redundant + 5), 5)
    other = [
        [b - a for a, b in zip((-1, *way), (*way, redundant + 5), strict=True)] for way in ways
    ]
    copies = count_copies(loads, 6 + redundant)
    assert sum(copies) == 6 + redundant
    assert busiest(copies) == min(map(busiest, other))


@given(LOADS, st.sampled_from([Devices(3, 3), Devices(4, 2), Devices(4, 6, 2, 2), Devices(2)]))
def test_every_expert_has_a_slot_and_every_slot_an_expert(loads: list[int], where: Devices):
    slots = place(loads, where)
    assert len(slots) == 6 + where.redundant
    assert set(slots) == set(range(6))
    assert 0 < balancedness(loads, slots, where.devices) <= 1 + 1e-12


def test_copies_even_out_what_order_leaves_uneven():
    loads = [8.0, 1.0, 1.0, 1.0]
    assert without_copies(4, 3) is None
    assert balancedness(loads, without_copies(4, 2) or (), 2) == pytest.approx(5.5 / 9)
    assert balancedness(loads, place(loads, Devices(2, 2)), 2) > 0.85
    assert balancedness([0.0, 0.0], (0, 1), 2) == 1.0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Devices(8, 3), "redundant=3 do not fill devices=8 evenly; set redundant to 4"),
        (Devices(8, 4, nodes=3), "devices=8 do not divide among nodes=3"),
        (Devices(8, 4, nodes=2, groups=5), "12 experts do not divide into groups=5"),
        (Devices(0), "devices=0"),
    ],
)
def test_what_does_not_come_out_even_is_told(where: Devices, message: str):
    with pytest.raises(ConfigError, match=message):
        place(EXAMPLE[0], where)


def test_loads_are_read_from_routing_and_from_lists(tmp_path: Path):
    routing, plain = tmp_path / "routing.json", tmp_path / "loads.json"
    choices = {"choices": [[0.25, 0.75], [0.5, 0.5], [1, 0]]}
    found = {"kind": "routing", "layers": [1, 2, 3], "prediction_layers": [3], "all_loads": choices}
    routing.write_text(json.dumps(found))
    plain.write_text("[[], [1, 3], [2, 2]]")
    assert read_loads(routing) == {1: [0.25, 0.75], 2: [0.5, 0.5]}
    assert read_loads(plain) == {1: [1, 3], 2: [2, 2]}


@pytest.mark.parametrize("text", ["{}", "[]", "[[1], [1, 2]]", "[[-1, 2]]", "[[]]", "[1]", "x"])
def test_what_has_no_loads_is_told(tmp_path: Path, text: str):
    (tmp_path / "loads.json").write_text(text)
    with pytest.raises(DataError, match=r"has no loads .*give the routing\.json of"):
        read_loads(tmp_path / "loads.json")


def test_locations_have_a_row_for_layers_without_experts_too():
    assert expert_locations({1: (1, 0, 1)}, 2) == {
        "physical_to_logical_map": [[0, 1, 0], [1, 0, 1]]
    }
