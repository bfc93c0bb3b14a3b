"""Throughput where everybody has one CPU: ``-t 1`` beside forks and processes that may not use the second one either.

In the rounds of all variants forks and processes have every CPU of the machine, and one request VM has one. Here each
server, with all that it starts, is confined to the first CPU, and wrk to the others.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from benchmark.load import wrk
from benchmark.measuring import start
from benchmark.programs import make
from benchmark.results import KEPT, NATIVE, NEW, Pair
from benchmark.variants import FORK, PROCESS, RESET, VARIANTS

ROUNDS = 5
CLIENTS = (2, 8)
# A program, and that which it is compared with.
BASELINES = (("C hello", FORK), ("CPython http.server", FORK), ("Deno hello", PROCESS))


def measure(options: argparse.Namespace, directory: Path) -> dict[str, list[Pair]]:
    """By what is compared: the baseline's best rate, and the other's. Raises RuntimeError where there is one CPU."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise RuntimeError("one CPU for the server and one for wrk are needed")
    found: dict[str, list[Pair]] = {}
    for name, baseline in BASELINES:
        sides = ((RESET, KEPT), (RESET, NEW), (NATIVE, NEW))
        with ExitStack() as stack:
            program = make(name, directory)
            ports: dict[str, int] = {}
            for variant in VARIANTS:
                if variant.name in (RESET, baseline, NATIVE):
                    server = start(program, variant, directory)
                    assert server is not None
                    stack.callback(server.stop)
                    # VMs are forked and their pages known before the threads are confined.
                    wrk(server.port, NEW, 1, CLIENTS[0])
                    _confine(server.process_id, allowed[0])
                    ports[variant.name] = server.port
            stack.enter_context(_on(set(allowed[1:])))
            for _ in range(max(ROUNDS, options.rounds)):
                without = _best(ports[baseline], NEW, options.seconds)
                for side, kind in sides:
                    pair = Pair(without=without, with_it=_best(ports[side], kind, options.seconds))
                    found.setdefault(f"{name}, {side}, {kind} / {baseline}", []).append(pair)
    return found


def _best(port: int, kind: str, seconds: float) -> float:
    return max(wrk(port, kind, seconds, clients).requests_per_s for clients in CLIENTS)


def _confine(process_id: int, cpu: int) -> None:
    """All threads of a process and of those that it has started; what they start later inherits it."""
    server = psutil.Process(process_id)
    for process in (server, *server.children(recursive=True)):
        # A fork may end meanwhile.
        with suppress(psutil.Error):
            for thread in process.threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, {cpu})


@contextmanager
def _on(cpus: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
