"""The log: one line an event on standard error, escaped, cut, and limited per repeated line.

Much of what is logged comes from a guest, so control characters are escaped (no forged lines, no terminal
sequences), lines are cut, and a line that repeats is counted instead of written.
"""

import logging
import sys
import time
from collections.abc import Callable

LOGGER = logging.getLogger("kvmserver")

LINE_CHARACTERS_MAX = 2000
REPEATS_MAX = 5
WINDOW_S = 10.0
# Different lines remembered at a time; a guest that makes every line different only empties the memory faster.
_REMEMBERED_MAX = 256

# For ``extra=``: the line was asked for by the operator, who has to get it as often as it was asked for.
ASKED_FOR = {"asked_for": True}

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up(verbose: bool) -> None:
    """Send our log to standard error; ``verbose`` adds the lines of level debug."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    handler.addFilter(RepeatLimit())
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


def level_of(name: object) -> int:
    """The numeric level of a name that came over a channel; what is unknown counts as a warning."""
    return _LEVELS.get(str(name), logging.WARNING)


def escape(text: str) -> str:
    """``text`` on one line, printable, at most ``LINE_CHARACTERS_MAX`` characters."""
    cut = text[:LINE_CHARACTERS_MAX]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in cut)
    return f"{line} ... (cut)" if len(text) > LINE_CHARACTERS_MAX else line


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03}Z {record.levelname.lower()} {escape(record.getMessage())}"


class RepeatLimit(logging.Filter):
    """Lets a line through ``REPEATS_MAX`` times in ``WINDOW_S`` seconds, and then says how many it held back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; the first one after a flood carries the number of those held back."""
        if getattr(record, "asked_for", False):
            return True
        text, now = record.getMessage(), self._clock()
        start, count = self._seen.pop(text, (now, 0))
        if now - start >= WINDOW_S:
            if count > REPEATS_MAX:
                record.msg, record.args = f"{text} (and {count - REPEATS_MAX} times more before)", ()
            start, count = now, 0
        self._seen[text] = (start, count + 1)
        if len(self._seen) > _REMEMBERED_MAX:
            del self._seen[next(iter(self._seen))]
        return count < REPEATS_MAX
