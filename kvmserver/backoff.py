"""How long to wait before something that died is started again."""

import time
from collections.abc import Callable

FIRST_S = 0.1
LONGEST_S = 10.0
# Something that lived this long counts as healthy: its next death starts from the shortest wait.
HEALTHY_S = 30.0


class Backoff:
    """Doubles the wait with every death that comes soon after a start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s = FIRST_S
        self._started_s = clock()

    def started(self) -> None:
        """The thing was started now."""
        self._started_s = self._clock()

    def delay_s(self) -> float:
        """It died now: the seconds to wait before the next start."""
        if self._clock() - self._started_s >= HEALTHY_S:
            self._delay_s = FIRST_S
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, LONGEST_S)
        return delay
