"""The statistics line that SIGUSR1 asks for: the counters of all workers added up."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmserver import machine
from kvmserver.channel import Message
from kvmserver.log import ASKED_FOR, LOGGER

# A worker that is stuck must not keep the numbers of the others from being logged.
_PATIENCE_S = 1.0


class Statistics:
    """Collects the answers of the workers to one question and logs their sum."""

    def __init__(self) -> None:
        self.workers = 0
        self._answers: dict[int, Mapping[str, Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """The question was sent to all workers; a line is logged when all have answered, or after a second."""
        self._finish()
        self._answers = {}
        self._timer = loop.call_later(_PATIENCE_S, self._finish)

    def add(self, message: Message) -> None:
        """The answer of one worker."""
        stats = message.get("stats")
        if self._answers is None or not isinstance(stats, Mapping):
            return
        self._answers[int(message["worker"])] = stats
        if len(self._answers) >= self.workers:
            self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._answers is not None:
            LOGGER.info("%s", line(list(self._answers.values())), extra=ASKED_FOR)
        self._answers = self._timer = None


def total(answers: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    """Counters added up, those of nested objects under dotted names; of maxima (by their name) the largest."""
    result: dict[str, int | float] = {}
    for stats in answers:
        for name, value in _numbers(stats, ""):
            is_maximum = name.endswith("_max") or "_max_" in name
            result[name] = max(result.get(name, value), value) if is_maximum else result.get(name, 0) + value
    return result


def _numbers(stats: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, int | float]]:
    for name, value in stats.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def line(answers: Sequence[Mapping[str, Any]]) -> str:
    """``statistics workers=2 rss_bytes=... NAME=VALUE ...``."""
    numbers = {"workers": len(answers), "rss_bytes": machine.resident_bytes(), **total(answers)}
    return "statistics " + " ".join(f"{name}={value}" for name, value in numbers.items())
