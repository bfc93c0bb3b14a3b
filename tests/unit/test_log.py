"""Log lines are one line each, harmless on a terminal, and limited when they repeat."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver import log


@given(st.text())
def test_an_escaped_text_is_one_printable_line(text: str) -> None:
    assert log.escape(text).isprintable()


def test_control_characters_cannot_forge_lines() -> None:
    assert log.escape("a\n2026 error \x1b[31mb\udcff") == "a\\n2026 error \\x1b[31mb\\udcff"


def test_a_long_text_is_cut() -> None:
    assert len(log.escape("x" * 10_000)) < log.LINE_CHARACTERS_MAX + 20


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("kvmserver", logging.WARNING, "", 0, "%s", (text,), None)


def test_a_repeated_line_is_counted_instead_of_written() -> None:
    now = [0.0]
    limit = log.RepeatLimit(lambda: now[0])
    assert [limit.filter(record("a")) for _ in range(8)] == [True] * 5 + [False] * 3
    assert limit.filter(record("b"))
    now[0] = log.WINDOW_S
    again = record("a")
    assert limit.filter(again)
    assert again.getMessage() == "a (and 3 times more before)"
    assert [limit.filter(record("a")) for _ in range(5)] == [True] * 4 + [False]


def test_what_was_asked_for_is_never_held_back() -> None:
    limit = log.RepeatLimit()
    record = logging.makeLogRecord({"msg": "statistics workers=1", **log.ASKED_FOR})
    assert all(limit.filter(record) for _ in range(10 * log.REPEATS_MAX))


def test_the_memory_of_the_limit_is_bounded() -> None:
    limit = log.RepeatLimit()
    for number in range(10_000):
        limit.filter(record(str(number)))
    assert len(limit._seen) <= 256


def test_lines_have_a_time_and_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(verbose=False)
    log.LOGGER.debug("not shown")
    log.LOGGER.warning("shown %s", "once")
    line = capsys.readouterr().err
    assert line.endswith("Z warning shown once\n")
    assert line.count("\n") == 1


def test_unknown_levels_are_warnings() -> None:
    assert log.level_of("error") == logging.ERROR
    assert log.level_of(3) == log.level_of("loud") == logging.WARNING
