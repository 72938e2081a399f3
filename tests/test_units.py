import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic import units
from moesaic.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (17, "17"),
        (0.25, "0.25"),
        (999, "999"),
        (1000, "1.00 k"),
        (22_500, "22.50 k"),
        (861_793_792, "861.8 M"),
        (999_960_000, "1.00 B"),
        (1_799_356_416, "1.80 B"),
        (15_706_484_224, "15.71 B"),
        (99_996_000_000, "100.0 B"),
        (671_026_419_200, "671.0 B"),
        (14.8e12, "14.80 T"),
        (-861_793_792, "-861.8 M"),
    ],
)
def test_counts_are_printed_in_the_fields_suffixes(value: float, text: str):
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("n_bytes", "decimal", "binary"),
    [
        (0, "0 B", "0 B"),
        (1000, "1.0 KB", "1000 B"),
        (1024, "1.0 KB", "1.0 KiB"),
        (999_960_000, "1.0 GB", "953.6 MiB"),
        (17_017_894_912, "17.0 GB", "15.8 GiB"),
        (2**50, "1125.9 TB", "1024.0 TiB"),
    ],
)
def test_bytes_are_printed_in_powers_of_ten_or_two(n_bytes: int, decimal: str, binary: str):
    assert units.gb(n_bytes) == decimal
    assert units.gib(n_bytes) == binary


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (59.97, "1 min 0 s"),
        (200, "3 min 20 s"),
        (6288, "1 h 44 min"),
        (3599.7, "1 h 0 min"),
        (86400 * 2 + 3600 * 3, "2 d 3 h"),
    ],
)
def test_durations_are_printed_for_people(seconds: float, text: str):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1000", 1000),
        ("512MB", 512_000_000),
        ("4GiB", 4 * 2**30),
        (" 1.5 KiB ", 1536),
        ("0.5TB", 500_000_000_000),
    ],
)
def test_sizes_are_read(text: str, n_bytes: int):
    assert units.parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "many", "-1GB", "4 gigabytes", "4K", "1e3", "1.2.3MB"])
def test_a_text_that_is_no_size_is_refused(text: str):
    with pytest.raises(ConfigError, match="is not a size; write a number and one of B, KB, MB"):
        units.parse_bytes(text)


@given(st.integers(min_value=0, max_value=10**16))
def test_what_is_printed_reads_back_to_within_its_digits(n_bytes: int):
    # one decimal of a number not below 1: off by at most half of 0.1
    assert units.parse_bytes(units.gb(n_bytes)) == pytest.approx(n_bytes, rel=0.05)
    assert units.parse_bytes(units.gib(n_bytes)) == pytest.approx(n_bytes, rel=0.05)


@given(st.floats(min_value=0, max_value=1e16))
def test_a_count_never_prints_a_thousand_of_a_suffix(value: float):
    assert not units.count(value).startswith("1000") or value >= 999.95e12


@pytest.mark.parametrize(
    ("value", "text"),
    [(12, "12 FLOP"), (2.5e6, "2.50 MFLOP"), (5.47e9, "5.47 GFLOP"), (1.9e15, "1900.00 TFLOP")],
)
def test_operations_carry_their_prefix(value: float, text: str):
    assert units.flop(value) == text
