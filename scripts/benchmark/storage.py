"""Measure calls of the storage program beside other ways to state that is kept elsewhere.

Rows: a call of the storage program with a copied buffer and with one in shared memory, of a storage program that
computes all the time and has to be interrupted, and, as ordinary processes do it, a round trip over a unix socket, a
GET of Redis over a kept connection, and one over a new connection; the Redis rows also from inside a request VM. Two
copies of the bytes in memory are the least that a call with a copied buffer can take. Each with buffers (values) of
several sizes, on an idle machine, and with one busy loop for each CPU. Times are taken in the calling program, around
each round trip; all round trips of all rounds together give the percentiles, and rounds go through the rows in turn.

"back to back" is one round trip after the other; "paused" has a sleep of 500 us before each, as a server that waits
for its next request has: a program that never sleeps is one more busy loop to the scheduler.
"""

import argparse
import array
import itertools
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmark.server import Server
from benchmark.tools import PROGRAMS, compile_program, free_port, kvmserver, machine, tool

SIZES = (0, 256, 64 << 10, 1 << 20)
# Round trips of one row in one round, by size.
COUNTS = {0: 4000, 256: 4000, 64 << 10: 1500, 1 << 20: 200}
PAUSE_US = 500
ANSWER_S = 120.0


@dataclass(frozen=True)
class Row:
    """One way to the state: what it is called, what the measuring program calls it, and where that program runs."""

    name: str
    kind: str
    where: str
    sizes: tuple[int, ...] = SIZES


SMALL = (0, 256)
ROWS = (
    Row("call", "call", "vm"),
    Row("call, shared buffer", "shared", "vm"),
    Row("call, program kicked", "call", "busy vm", SMALL),
    Row("two copies in memory", "copy", "native"),
    Row("unix socket", "unix", "native"),
    Row("Redis GET, kept", "kept", "native"),
    Row("Redis GET, new", "new", "native", SMALL),
    Row("Redis GET, kept, from a VM", "kept", "vm", SMALL),
    Row("Redis GET, new, from a VM", "new", "vm", SMALL),
)


@dataclass(frozen=True)
class Condition:
    """What the machine does meanwhile, and the program between its round trips."""

    name: str
    busy: bool
    pause_us: int
    # Part of the usual number of round trips that is made.
    part: float


CONDITIONS = (
    Condition("idle, back to back", False, 0, 1),
    Condition("idle, paused", False, PAUSE_US, 0.5),
    Condition("busy, back to back", True, 0, 0.25),
    Condition("busy, paused", True, PAUSE_US, 0.5),
)


@dataclass
class Measured:
    """A row with one size under one condition."""

    row: str
    size: int
    condition: str
    times_ns: list[int] = field(default_factory=list)
    round_p50_ns: list[float] = field(default_factory=list)
    calls: int = 0
    exits: float = 0
    storage_exits: float = 0
    kicks: float = 0
    voluntary_switches: int = 0

    def add(self, times: Sequence[int]) -> None:
        """The round trips of one round."""
        self.times_ns += times
        self.round_p50_ns.append(statistics.median(times))

    def percentile_us(self, part: float) -> float:
        """A percentile of all round trips, microseconds."""
        ordered = sorted(self.times_ns)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] / 1000


def switches(server: Server) -> int:
    """How often the thread of the request VM has given up its CPU by itself."""
    found = 0
    for process in psutil.Process(server.process_id).children(recursive=True):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            if (task / "comm").read_text().strip() == "vm-0":
                status = (task / "status").read_text()
                found += int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """That many processes that compute for ever."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


class Bench:
    """The programs that take part, all running."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        library = directory / "guestlib"
        subprocess.run([kvmserver(), "guestlib", str(library)], check=True, stdout=subprocess.DEVNULL)
        linked = (f"-L{library}", "-lkvmserverguest")
        self._client = compile_program(PROGRAMS / "round_trips.c", directory, str(library / "kvmserverguest_dlopen.c"))
        self._echo = compile_program(PROGRAMS / "storage_echo.c", directory, *linked)
        self.redis_port = free_port()
        self.unix_number = os.getpid()
        self._start_peers(directory, stack)
        self.servers = {"vm": self._serve(directory, stack), "busy vm": self._serve(directory, stack, "busy")}

    def _start_peers(self, directory: Path, stack: ExitStack) -> None:
        redis = [tool("redis-server", "apt-get install -y redis-server"), "--port", str(self.redis_port)]
        redis += ["--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
        path = Path(f"/tmp/round-trips-{self.unix_number}")
        stack.callback(path.unlink, missing_ok=True)
        for words in (redis, [self._client, "echo", str(path)]):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.redis_port), timeout=10) as client:
                    for size in SIZES:
                        key = f"value:{size}"
                        head = f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${size}\r\n"
                        client.sendall(head.encode() + b"x" * size + b"\r\n")
                        assert client.recv(64) == b"+OK\r\n"
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _serve(self, directory: Path, stack: ExitStack, *mode: str) -> Server:
        port = free_port()
        words = [kvmserver(), "-e", "-t", "1", "--allow-all", "--max-request-time", str(int(ANSWER_S))]
        words += ["storage", self._echo, *mode, "++", "run", self._client, "serve", str(port)]
        server = Server(words, port, directory, True)
        stack.callback(server.stop)
        server.wait()
        return server

    def times(self, row: Row, size: int, count: int, pause_us: int) -> list[int]:
        """The times of that many round trips, nanoseconds."""
        peer = self.unix_number if row.kind == "unix" else self.redis_port
        if row.where == "native":
            words = [self._client, "once", row.kind, str(size), str(count), str(pause_us), str(peer)]
            raw = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
        else:
            url = f"http://127.0.0.1:{self.servers[row.where].port}/{row.kind}/{size}/{count}/{pause_us}/{peer}"
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                raw = answer.read()
        numbers = array.array("I", raw)
        assert len(numbers) == count, f"{len(numbers)} times instead of {count}"
        return list(numbers)

    def measure(self, row: Row, condition: Condition, measured: Measured) -> None:
        """One round of one row."""
        count = max(50, int(COUNTS[measured.size] * condition.part))
        server = self.servers.get(row.where)
        if server is None:
            measured.add(self.times(row, measured.size, count, condition.pause_us))
            return
        before, slept = server.counters(), switches(server)
        measured.add(self.times(row, measured.size, count, condition.pause_us))
        measured.voluntary_switches += switches(server) - slept
        used = {name: number - before.get(name, 0) for name, number in server.counters().items()}
        # Some round trips are made before those that are reported.
        measured.calls += int(used["storage.calls"]) or count
        measured.exits += used["totals.exits"]
        measured.storage_exits += used["storage.exits"]
        measured.kicks += used["storage.kicks"]


def show(results: Sequence[Measured], facts: dict[str, object], console: Console) -> None:
    """The tables for people."""
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    for condition in dict.fromkeys(measured.condition for measured in results):
        table = Table(title=f"One round trip, {condition}: microseconds")
        table.add_column("row", no_wrap=True)
        names = ("bytes", "p50", "lowest and highest round", "p99", "p99.9")
        for name in (*names, "exits", "of the storage VM", "kicks", "switches"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in (measured for measured in results if measured.condition == condition):
            low, high = min(one.round_p50_ns) / 1000, max(one.round_p50_ns) / 1000
            counts = (one.exits, one.storage_exits, one.kicks, one.voluntary_switches)
            table.add_row(
                one.row,
                f"{one.size:,}",
                f"{one.percentile_us(0.5):,.1f}",
                f"{low:,.1f} to {high:,.1f}",
                f"{one.percentile_us(0.99):,.1f}",
                f"{one.percentile_us(0.999):,.1f}",
                *(f"{number / one.calls:.2f}" if one.calls else "" for number in counts),
            )
        console.print(table)


def as_json(results: Sequence[Measured], facts: dict[str, object]) -> str:
    """Everything but the single times, for a machine."""
    rows = []
    for one in results:
        row = {name: value for name, value in asdict(one).items() if name != "times_ns"}
        parts = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
        rows.append({**row, "samples": len(one.times_ns), **{name: one.percentile_us(p) for name, p in parts.items()}})
    return json.dumps({"machine": facts, "results": rows}, indent=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all rows (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round: figures to look at, not to quote")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows whose name contains TEXT")
    parser.add_argument("--condition", metavar="TEXT", default="", help="only conditions whose name contains TEXT")


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON."""
    rounds = 1 if options.quick else options.rounds
    facts = machine()
    rows = [(row, size) for row in ROWS if options.only.lower() in row.name.lower() for size in row.sizes]
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        bench = Bench(Path(name), stack)
        for condition in CONDITIONS:
            if options.condition.lower() not in condition.name:
                continue
            console.print(f"measuring {condition.name} ...", highlight=False)
            plan = [(row, Measured(row.name, size, condition.name)) for row, size in rows]
            with busy_loops(len(os.sched_getaffinity(0)) if condition.busy else 0):
                for _, (row, measured) in itertools.product(range(rounds), plan):
                    bench.measure(row, condition, measured)
            results += [measured for _, measured in plan]
    show(results, facts, console)
    return as_json(results, facts)
