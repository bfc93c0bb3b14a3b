"""Fixtures: a configuration directory of its own for each test, and the command line over a pretended data plane.

The pretended data plane (fake_vmm/) takes the place of the extension in child processes only, through PYTHONPATH, so
that supervisor, tenant and workers run as the real processes that they are.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_vmm")


@dataclass
class Running:
    """A started command whose ``Program`` line has been read."""

    process: subprocess.Popen[str]
    lines: list[str]

    def finish(self, signal_number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; exit code and everything on standard error."""
        self.process.send_signal(signal_number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@dataclass
class Command:
    """The kvmserver command over the pretended data plane, in a directory with its programs."""

    directory: Path
    environment: dict[str, str]

    def program(self, name: str) -> str:
        path = self.directory / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return f"./{name}"

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._words(words),
            input=text,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment,
            timeout=60,
        )

    def start_unread(self, *words: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._words(words),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )

    def start(self, *words: str) -> Running:
        process = self.start_unread(*words, stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Program"):
                break
        return Running(process, lines)

    @staticmethod
    def _words(words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "kvmserver", *words]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    path = os.pathsep.join([str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return Command(tmp_path, {**os.environ, "PYTHONPATH": path})


@pytest.fixture
def start(command: Command) -> Iterator[Callable[..., Running]]:
    """Start a pretended server by name; whatever still runs at the end of the test is ended."""
    started: list[Running] = []

    def start_server(name: str, *options: str) -> Running:
        started.append(command.start(*options, "run", command.program(name)))
        return started[-1]

    yield start_server
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
