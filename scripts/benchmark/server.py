"""A server that is measured: an ordinary process, or one in kvmserver."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

DENO_V8_FLAGS = "--predictable,--max-old-space-size=64,--max-semi-space-size=64"
START_S = 60.0


class Server:
    """A started server process with its log in a file."""

    def __init__(
        self,
        words: Sequence[str],
        port: int,
        directory: Path,
        isolated: bool,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.port = port
        self.isolated = isolated
        self._log = directory / f"{port}.log"
        self._out = directory / f"{port}.out"
        settings = {"DENO_V8_FLAGS": DENO_V8_FLAGS, "NODE_ENV": "production", "NO_COLOR": "1", **(environment or {})}
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                # An empty one is none: Deno takes an empty flag for a wrong one.
                env={name: value for name, value in (os.environ | settings).items() if value},
                cwd=cwd,
                start_new_session=True,
            )
        self._words = words

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError when it ends or takes too long."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if not self.isolated or "Program '" in self._out.read_text(errors="replace"):
                try:
                    socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                    return
                except OSError:
                    pass
            time.sleep(0.01)
        raise RuntimeError(f"{' '.join(self._words)} does not serve:\n{self._log.read_text(errors='replace')[-2000:]}")

    def counters(self) -> dict[str, float]:
        """The sums that kvmserver logs on SIGUSR1."""
        before = self._log.read_text().count(" statistics ")
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            lines = [line for line in self._log.read_text().splitlines() if " statistics " in line]
            if len(lines) > before:
                return {name: float(number) for name, number in re.findall(r"([\w.]+)=([\d.]+)", lines[-1])}
            time.sleep(0.01)
        raise RuntimeError("kvmserver does not answer SIGUSR1 with its statistics")

    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text(errors="replace")

    @property
    def process_id(self) -> int:
        """Of the supervisor, if it is isolated."""
        return self._process.pid

    def memory_mib(self) -> float:
        """What it and its workers occupy now."""
        return resident_mib(self._process.pid)

    def stop(self) -> None:
        """End it and everything it started."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def resident_mib(process_id: int) -> float:
    """Memory of a process and all below it, shared pages counted once (the sum of their proportional sizes)."""
    total_kib = 0
    root = psutil.Process(process_id)
    for process in [root, *root.children(recursive=True)]:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        match = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
        total_kib += int(match[1]) if match else 0
    return total_kib / 1024
