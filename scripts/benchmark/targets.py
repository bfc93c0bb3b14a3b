"""The promises of the performance section, each with the figure that was measured and whether it is kept.

"Development machine" is any with ``-t 1``; latencies are p50 of one client, with a reset after every request.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmark.results import KEPT, NEW, Pair, Report, median, ratios, with_spread
from benchmark.variants import FORK, PROCESS, RESET

# What the same server differs by when it is measured twice on a machine with other work; "no cost" can be no less.
NO_COST = 0.97
_ONE_CLIENT = 1


@dataclass(frozen=True)
class Target:
    """One promise: ``measured`` is the figure with its spread, ``met`` None where it was not measured."""

    promise: str
    limit: str
    measured: str
    met: bool | None


def evaluate(report: Report) -> list[Target]:
    """All of them, in the order of the issue."""
    return [
        *_latencies(report),
        *_tails(report),
        *_exits(report),
        *_throughputs(report),
        *_checks(report),
    ]


def _at_most(promise: str, limit: float, values: Sequence[float], unit: str = "x") -> Target:
    return _judge(promise, f"<= {limit:g}{unit}", values, lambda value: value <= limit, unit)


def _at_least(promise: str, limit: float, values: Sequence[float], unit: str = "x") -> Target:
    return _judge(promise, f">= {limit:g}{unit}", values, lambda value: value >= limit, unit)


def _judge(promise: str, limit: str, values: Sequence[float], good: Callable[[float], bool], unit: str) -> Target:
    middle = median(values)
    return Target(
        promise,
        limit,
        with_spread(values, lambda value: f"{value:,.2f}{unit}"),
        None if middle is None else good(middle),
    )


def _latencies(report: Report) -> Iterator[Target]:
    limits = (("C hello", NEW, 2.2), ("C hello", KEPT, 2.5), ("Deno hello", KEPT, 2.0), ("React page", KEPT, 1.15))
    for program, kind, limit in limits:
        row = report.row(program, RESET, kind)
        values = report.versus_native(row, "p50_us", _ONE_CLIENT) if row else []
        yield _at_most(f"{program}, {kind}: p50 / native's", limit, values)


def _tails(report: Report) -> Iterator[Target]:
    """p99/p50, divided by that of native in the same round."""
    for program, kind in (("C hello", NEW), ("C hello", KEPT), ("Deno hello", KEPT), ("React page", KEPT)):
        ours = report.row(program, RESET, kind)
        native = report.native_of(ours) if ours else None
        values = ratios(ours.values("tail", _ONE_CLIENT), native.values("tail", _ONE_CLIENT)) if ours and native else []
        yield _at_most(f"{program}, {kind}: p99/p50 / native's p99/p50", 1.0, values)


def _exits(report: Report) -> Iterator[Target]:
    for program, limit in (("C hello", 2.0), ("Deno hello", 2.0), ("Go hello", 4.0), ("Node hello", 4.0)):
        row = report.row(program, RESET, KEPT)
        values = [row.counters["exits"]] if row and "exits" in row.counters else []
        yield _judge(f"{program}: exits a request", f"<= {limit:g}", values, _few_exits(limit), "")


def _few_exits(limit: float) -> Callable[[float], bool]:
    """One request in fifty may be interrupted, by a timer or by the end of a run of wrk."""
    return lambda exits: exits <= limit + 0.02


def _throughputs(report: Report) -> Iterator[Target]:
    for program in ("C hello", "CPython http.server"):
        for kind in (NEW, KEPT):
            yield _at_least(
                f"{program}, {kind}: requests/s / fork per request on all CPUs", 8.0, _best(report, program, kind, FORK)
            )
    for kind in (NEW, KEPT):
        values = _best(report, "Deno hello", kind, PROCESS)
        yield _at_least(f"Deno hello, {kind}: requests/s / process per request on all CPUs", 100.0, values)


def _best(report: Report, program: str, kind: str, baseline: str) -> list[float]:
    """The best rate of each over all numbers of clients; a baseline has a new connection for every request."""
    ours, theirs = report.row(program, RESET, kind), report.row(program, baseline, NEW)
    rates = [row.best_rate() if row else None for row in (ours, theirs)]
    return [rates[0] / rates[1]] if rates[0] is not None and rates[1] else []


def _checks(report: Report) -> Iterator[Target]:
    checks = report.checks
    if not checks.two_vms:
        yield _at_least("two VMs: requests/s / one VM's", 1.8, [])
    for program, pairs in checks.two_vms.items():
        yield _at_least(f"{program}: requests/s of two VMs / one VM's", 1.8, _pair_ratios(pairs))
    for program, pairs in checks.two_vms.items():
        # Two CPUs for two VMs there are only where the clients need none.
        shares = [pair.ratio / cpus for pair in pairs if (cpus := report.cpus_left(pair))]
        yield _at_least(f"{program}: two VMs / one VM's, for each CPU that the clients left", 0.9, shares)
    for compared, pairs in checks.one_cpu.items():
        if RESET in compared:
            limit = 100.0 if PROCESS in compared else 8.0
            yield _at_least(f"one CPU each: {compared}", limit, _pair_ratios(pairs))
    promise = f"{checks.idle_connections or 1000:,} idle kept connections: requests/s / without them"
    yield _at_least(promise, NO_COST, _pair_ratios(checks.idle))
    for mode, pairs in checks.slow.items():
        promise = f"{checks.slow_connections:,} connections with {mode}: requests/s / without them"
        yield _at_least(promise, 0.9, _pair_ratios(pairs))
    held = [] if checks.slow_vms_held is None else [float(checks.slow_vms_held)]
    yield _at_most("VMs held by slow clients", 0, held, "")
    seconds = checks.many_vms_s
    yield _at_most(f"{checks.many_vms or 200} request VMs from the snapshot to ready", 3.0, seconds, " s")


def _pair_ratios(pairs: Sequence[Pair]) -> list[float]:
    return [pair.ratio for pair in pairs]
