"""Counters of the workers are added up; a silent worker does not hold the line back."""

import asyncio
from typing import Any

import pytest

from kvmserver import log, service_stats
from kvmserver.service_stats import Statistics


def test_counters_are_added_and_maxima_are_not() -> None:
    answers: list[dict[str, Any]] = [
        {"requests": 1, "reset_ns_max": 5, "mean": 0.5, "on": True, "who": "x"},
        {"requests": 2, "reset_ns_max": 3},
    ]
    assert service_stats.total(answers) == {"requests": 3, "reset_ns_max": 5, "mean": 0.5}


def test_nested_counters_have_dotted_names() -> None:
    answers = [
        {"failures": {"killed": 1}, "totals": {"exits": 5}},
        {"failures": {"timed_out": 2}, "totals": {"exits": 6}},
    ]
    assert service_stats.total(answers) == {"failures.killed": 1, "totals.exits": 11, "failures.timed_out": 2}


def test_the_line_is_logged_when_all_have_answered_or_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service_stats, "_PATIENCE_S", 0.05)
    log.set_up(verbose=False)

    async def scenario() -> None:
        statistics = Statistics()
        statistics.workers = 2
        statistics.add({"worker": 0, "stats": {"requests": 100}})
        statistics.ask(asyncio.get_running_loop())
        statistics.add({"worker": 0, "stats": {"requests": 1}})
        statistics.add({"worker": 1, "stats": {"requests": 2}})
        statistics.ask(asyncio.get_running_loop())
        statistics.add({"worker": 0, "stats": {"requests": 4}})
        await asyncio.sleep(0.2)

    asyncio.run(scenario())
    first, second = capsys.readouterr().err.splitlines()
    assert "info statistics workers=2 " in first
    assert first.endswith(" requests=3")
    assert "info statistics workers=1 " in second
    assert second.endswith(" requests=4")
