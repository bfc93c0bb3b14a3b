"""Rounds: all variants of a program run, idle but for the one that is measured, and rounds go through them in turn."""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmark.load import ConstantRate, wrk
from benchmark.programs import Program
from benchmark.results import KEPT, NATIVE, NATIVE_PLAIN, Footprint, OpenSample, Row
from benchmark.server import Server
from benchmark.tools import free_port
from benchmark.variants import RESET, VARIANTS, Variant, available, command, kinds_of

EXTRA_VMS = 8
# Of the open loop, at which a request of a slow server queues up in the client.
OPEN_CONNECTIONS = 64
FRACTIONS = (0.5, 0.8)
# For an ordinary process that compiles while it runs: some thousand requests, as kvmserver's warm-up has one.
WARM_UP_S = 3.0


def start(
    program: Program, variant: Variant, directory: Path, threads: int = 1, more: Sequence[str] = ()
) -> Server | None:
    """A server that answers; None where the program has no such variant."""
    port = free_port()
    words = command(program, variant, port, threads, more)
    if words is None:
        return None
    environment = {**program.environment, "DENO_V8_FLAGS": ""} if variant.name == NATIVE_PLAIN else program.environment
    server = Server(words, port, directory, variant.isolated, environment, program.directory)
    try:
        server.wait()
    except BaseException:
        server.stop()
        raise
    return server


@dataclass
class Running:
    """A started variant with its rows: one for each kind of connection."""

    variant: Variant
    server: Server
    rows: list[Row]
    # Sums of the counters over the runs of each row, by its kind.
    sums: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def sample(self, row: Row, seconds: float, clients: int) -> None:
        """One run of wrk, with what it cost."""
        before = self.server.counters() if self.variant.isolated else {}
        row.closed.setdefault(clients, []).append(wrk(self.server.port, row.kind, seconds, clients))
        if self.variant.isolated:
            sums = self.sums.setdefault(row.kind, {})
            add_difference(sums, before, self.server.counters())
            row.counters = per_request(sums)

    def open_sample(self, row: Row, tool: ConstantRate, fraction: float, seconds: float) -> None:
        """One run at a share of the rate that the closed loop has reached."""
        best = row.best_rate()
        if best:
            sample: OpenSample = tool.run(self.server.port, row.kind, best * fraction, seconds, OPEN_CONNECTIONS)
            row.open.setdefault(fraction, []).append(sample)


def add_difference(sums: dict[str, float], before: dict[str, float], after: dict[str, float]) -> None:
    """Add what the counters have grown by."""
    for name, value in after.items():
        if name == "requests" or name.startswith("totals."):
            short = name.removeprefix("totals.")
            sums[short] = sums.get(short, 0.0) + value - before.get(name, 0.0)


def per_request(sums: dict[str, float]) -> dict[str, float]:
    """The sums divided by the requests."""
    requests = sums.get("requests", 0.0)
    if requests <= 0:
        return {}
    return {"requests": requests, **{name: sum_ / requests for name, sum_ in sums.items() if name != "requests"}}


def measure(program: Program, options: argparse.Namespace, directory: Path) -> list[Row]:
    """All variants of one program, in interleaved rounds."""
    with ExitStack() as stack:
        running = [one for variant in VARIANTS if (one := _run(program, variant, options, directory, stack))]
        # The programs that have a JIT were warmed up only where kvmserver did it.
        for one in running:
            wrk(one.server.port, one.rows[0].kind, max(options.seconds, WARM_UP_S), 1)
        if "closed" in options.parts:
            _closed_rounds(running, options)
        if "open" in options.parts:
            _open_rounds(running, options, ConstantRate(directory))
        return [row for one in running for row in one.rows]


def _run(
    program: Program, variant: Variant, options: argparse.Namespace, directory: Path, stack: ExitStack
) -> Running | None:
    kinds = [kind for kind in kinds_of(program, variant) if kind in options.kinds]
    if variant.name not in options.variant or not kinds or not available(variant):
        return None
    server = start(program, variant, directory)
    if server is None:
        return None
    stack.callback(server.stop)
    return Running(variant, server, [Row(program=program.name, variant=variant.name, kind=kind) for kind in kinds])


def _closed_rounds(running: Sequence[Running], options: argparse.Namespace) -> None:
    for _ in range(options.rounds):
        for clients in options.connections:
            for one in running:
                for row in one.rows:
                    if clients <= one.variant.clients_max:
                        one.sample(row, options.seconds, clients)


def _open_rounds(running: Sequence[Running], options: argparse.Namespace, tool: ConstantRate) -> None:
    """Over kept connections, where most clients are."""
    for _ in range(options.rounds):
        for fraction in FRACTIONS:
            for one in running:
                for row in one.rows:
                    if one.variant.open_loop and row.kind == KEPT:
                        one.open_sample(row, tool, fraction, options.seconds)


def footprint(program: Program, options: argparse.Namespace, directory: Path) -> Footprint:
    """Time from the command to the first answer (isolated: to the line ``Program``), and memory by number of VMs."""
    variants = [variant for variant in VARIANTS if variant.name in (NATIVE, RESET)]
    cold = dataclasses.replace(program, warmup=0)
    starts: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            begin = time.perf_counter()
            server = _started(cold, variant, directory)
            starts[variant.name].append(time.perf_counter() - begin)
            server.stop()
    memory: dict[int, float] = {}
    for threads in (1, 1 + EXTRA_VMS):
        server = _started(program, variants[-1], directory, threads)
        wrk(server.port, KEPT, options.seconds, 8 * threads)
        memory[threads] = server.memory_mib()
        server.stop()
    added = (memory[1 + EXTRA_VMS] - memory[1]) / EXTRA_VMS
    return Footprint(
        program=program.name,
        start_native_s=statistics.median(starts[NATIVE]),
        start_isolated_s=statistics.median(starts[RESET]),
        memory_mib=memory[1],
        memory_per_vm_mib=added,
    )


def _started(program: Program, variant: Variant, directory: Path, threads: int = 1) -> Server:
    server = start(program, variant, directory, threads)
    assert server is not None
    return server
