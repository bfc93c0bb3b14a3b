"""Durations and sizes: every spelling reads back as the same number, and nothing is guessed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
        ("2m", 120_000_000_000),
        ("8", 8_000_000_000),
        ("0.1", 10**8),
        ("1h", 3600 * 10**9),
        ("7 us", 7000),
        ("3NS", 3),
        (" 20s ", 20 * 10**9),
    ],
)
def test_durations_with_and_without_a_unit(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("128", 128 << 20), ("1.5GiB", 3 << 29), ("4096b", 4096), ("2tib", 2 << 40), ("1KiB", 1024)],
)
def test_sizes_with_and_without_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "s", "1x", "-1s", "1e3", "1.", ".5s", "1s2", "nan", "٣s", "9" * 40])
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|unit"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "1g", "64MB", "-1", "0x10", "1 2"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        parse_size(text)


@given(st.integers(0, 10**24))
def test_a_formatted_duration_reads_back(nanoseconds: int) -> None:
    text = format_duration(nanoseconds)
    if len(text) <= 18:
        assert parse_duration(text) == nanoseconds


@given(st.integers(0, 1 << 59))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
