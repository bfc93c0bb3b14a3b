"""What a start prints: the lines on standard output that tools wait for, and a progress bar on a terminal."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from kvmserver import machine
from kvmserver.channel import Message
from kvmserver.log import LOGGER, escape

if TYPE_CHECKING:
    from rich.progress import Progress

_STDOUT = 1
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


def write_line(text: str) -> None:
    """One line on standard output, unbuffered; a reader that has gone away is no reason to stop serving."""
    with contextlib.suppress(OSError):
        os.write(_STDOUT, escape(text).encode("utf-8", "replace") + b"\n")


class StartOutput:
    """Prints the progress of the first start; a restarted tenant is a matter for the log."""

    def __init__(self, start: Message) -> None:
        self._program = str(start["program"])
        self._threads = int(start["threads"])
        self._ephemeral = bool(start["serve"]["ephemeral"])
        self._count = int(start["warmup"]["count"])
        self._ready: Message | None = None
        self._done = False
        self._progress: Progress | None = None

    def storage_ready(self, message: Message) -> None:
        """The storage program waits for its first call; the other program is started next."""
        if not self._done:
            write_line(f"Storage VM initialized. init={_milliseconds(message.get('init_ns'))}ms")

    def ready(self, message: Message) -> None:
        """The program waits with a listener open; warm-up begins."""
        self._ready = message
        if self._count and not self._done:
            listeners = message.get("listeners") or ["?"]
            work = f"(1 threads * {self._count} connections * 1 requests)"
            write_line(f"Warming up the guest VM listening on {listeners[0]} {work}")

    def progress(self, done: int) -> None:
        """``done`` warm-up requests were answered."""
        if self._done or not sys.stderr.isatty():
            return
        if self._progress is None:
            self._progress = _progress_bar(self._count)
        self._progress.update(self._progress.task_ids[0], completed=done, refresh=True)

    def serving(self, message: Message) -> None:
        """All workers serve."""
        self.close()
        self._done = True
        LOGGER.debug("%s", self.forked_line(message))
        # Last: who waits for this line may look at the log then.
        write_line(self.loaded_line(message, machine.resident_bytes()))

    def forked_line(self, message: Message) -> str:
        """How long the forks took, which is what a restart costs beside the start and the warm-up."""
        processes = int(message["workers"])
        noun = "process" if processes == 1 else "processes"
        seconds = int(message["fork_ns"]) / _NS_PER_S
        return f"{self._threads} request VMs in {processes} {noun} ready {seconds:.3f} s after the snapshot"

    def loaded_line(self, message: Message, rss_bytes: int) -> str:
        """The line that tells tools that requests are answered from now on."""
        ready: dict[str, Any] = self._ready or {}
        words = [f"Program '{self._program}' loaded. {ready.get('wait', '?')} vm={self._threads}"]
        words += ["ephemeral"] if self._ephemeral else []
        words += [f"init={_milliseconds(ready.get('init_ns'))}ms"]
        words += [f"warmup={_milliseconds(message.get('warmup_ns'))}ms"] if self._count else []
        return " ".join([*words, f"rss={round(rss_bytes / 1e6)}MB"])

    def close(self) -> None:
        """Take the progress bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _milliseconds(nanoseconds: object) -> int:
    return round(nanoseconds / _NS_PER_MS) if isinstance(nanoseconds, int) else 0


def _progress_bar(count: int) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # No refresh thread: the bar moves when an event comes, and the supervisor stays single-threaded.
    columns = (TextColumn("Warming up"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    bar.start()
    bar.add_task("warm-up", total=count)
    return bar
