"""What the tests of storage programs with a real database stand on: a Redis server, clients that keep every answer."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import redis
from harness import GUESTLIB, PROGRAMS, PYTHON, Answer, ask, find_tool, free_port, wait_until

# All that the interpreters, the programs and the modules are made of; nothing else of the host is granted.
READ = sorted({"/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix, str(PROGRAMS), str(GUESTLIB)})
PYTHON_GRANTS = (f"--allow-read={','.join(READ)}", "--env", f"PYTHONPATH={GUESTLIB / 'python'}")


def python(name: str, *words: object) -> list[str]:
    """The words that run tests/programs/NAME.py."""
    return [PYTHON, str(PROGRAMS / f"{name}.py"), *map(str, words)]


class RedisServer:
    """Debian's server on a port of its own, with an append-only file in an empty directory."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._log = directory / "redis.log"
        words = [find_tool("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
        words += ["--save", "", "--appendonly", "yes", "--appendfsync", "no", "--logfile", str(self._log)]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._client = redis.Redis("127.0.0.1", self.port, decode_responses=True)
        wait_until(self._answers, 10, "redis-server does not answer")

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"redis-server has ended:\n{self._log.read_text()}"
        with contextlib.suppress(redis.ConnectionError):
            return bool(self._client.ping())
        return False

    def number(self, key: str = "numbers") -> int:
        """A counter as Redis has it; 0 where it has none."""
        return int(str(self._client.get(key) or 0))

    def disconnect_all(self) -> None:
        """Close all connections of others."""
        self._client.client_kill_filter(_type="normal", skipme=True)

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        finally:
            self._process.kill()


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """A Redis server for the time of the block."""
    server = RedisServer(directory)
    try:
        yield server
    finally:
        server.close()


# Clients that got an error do not come back at once.
REFUSED_PAUSE_S = 0.02


@dataclass
class Load:
    """Clients that ask the same again and again, and what came of it."""

    port: int
    path: str
    numbers: list[int] = field(default_factory=list)
    refused: list[Answer] = field(default_factory=list)
    slowest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            answer = ask(self.port, self.path, timeout_s=20)
            # Appending is atomic, and a lost update of the maximum costs nothing that is asserted.
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if answer.status == 200:
                self.numbers.append(int(answer.body))
            else:
                self.refused.append(answer)
                self._stop.wait(REFUSED_PAUSE_S)

    @contextlib.contextmanager
    def from_clients(self, clients: int) -> Iterator["Load"]:
        """Let so many clients ask for the time of the block. Whatever ends a client but an answer fails the test."""
        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._run) for _ in range(clients)]
            try:
                yield self
            finally:
                self._stop.set()
            for client in running:
                client.result()

    def check_answers(self, last: int) -> None:
        """No number came twice, none is above the database's own, and a refusal says so."""
        assert len(set(self.numbers)) == len(self.numbers)
        assert all(0 < number <= last for number in self.numbers)
        assert {answer.status for answer in self.refused} <= {502, 503, 504}
