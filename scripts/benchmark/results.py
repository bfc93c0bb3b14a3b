"""What a run of ``scripts/bench serving`` has found: the content of its JSON, and the figures that follow from it.

Tables, the chart and the targets are made from this alone, so that they can be made again from a file. Every ratio is
the median of the ratios within each round: two runs a second apart had the same machine, two rounds may not have had.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, Field

NATIVE = "native"
# Where kvmserver's runs have settings of the runtime that nobody would give an ordinary process.
NATIVE_PLAIN = "native, no V8 flags"
KEPT, NEW = "keep-alive", "new connections"


class Sample(BaseModel):
    """One run of wrk. Its latencies begin when a request is sent; ``each_us`` has the connection in it."""

    p50_us: float
    p99_us: float
    max_us: float
    each_us: float
    requests_per_s: float
    errors: int

    @property
    def tail(self) -> float:
        """p99 as a multiple of p50."""
        return self.p99_us / max(self.p50_us, 1.0)


class OpenSample(BaseModel):
    """One run at a constant rate; latencies count from the instant at which a request was due."""

    rate: float
    requests_per_s: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    errors: int
    unfinished: int


class Row(BaseModel):
    """One variant of a program over one kind of connection: samples by number of clients, and by share of its rate."""

    program: str
    variant: str
    kind: str
    closed: dict[int, list[Sample]] = Field(default_factory=dict)
    open: dict[float, list[OpenSample]] = Field(default_factory=dict)
    # Of kvmserver, for each request.
    counters: dict[str, float] = Field(default_factory=dict)

    def values(self, name: str, clients: int) -> list[float]:
        """One figure of all rounds."""
        return [float(getattr(sample, name)) for sample in self.closed.get(clients, [])]

    def median(self, name: str, clients: int) -> float | None:
        """The median over the rounds; None where nothing was measured."""
        return median(self.values(name, clients))

    def best_rate(self) -> float | None:
        """The largest of the median rates, over all numbers of clients."""
        rates = [rate for clients in self.closed if (rate := self.median("requests_per_s", clients)) is not None]
        return max(rates, default=None)

    @property
    def errors(self) -> int:
        """Of all rounds."""
        runs: list[Sequence[Sample | OpenSample]] = [*self.closed.values(), *self.open.values()]
        return sum(sample.errors for samples in runs for sample in samples)


class Footprint(BaseModel):
    """What a program costs beside its requests."""

    program: str
    start_native_s: float
    start_isolated_s: float
    memory_mib: float
    memory_per_vm_mib: float


class PageFacts(BaseModel):
    """The page that was rendered: how large it is, and how long one rendering takes natively, without a server."""

    items: int
    rendering_us: float
    response_bytes: int


class Pair(BaseModel):
    """Requests a second without and with something, measured one after the other."""

    without: float
    with_it: float
    # How many CPUs the clients used on the side with, where somebody looked.
    client_cpus: float | None = None

    @property
    def ratio(self) -> float:
        """With as a share of without."""
        return self.with_it / max(self.without, 1e-9)


class Checks(BaseModel):
    """Experiments of their own, for single promises."""

    # By program: one VM, and two.
    two_vms: dict[str, list[Pair]] = Field(default_factory=dict)
    # By program: one process, and two, for what two CPUs give that also run the client.
    two_natives: dict[str, list[Pair]] = Field(default_factory=dict)
    # A busy loop and two, turns a second: what two CPUs of this machine give at best.
    two_loops: list[Pair] = Field(default_factory=list)
    # By what is compared: forks or processes with one CPU, and the other with one.
    one_cpu: dict[str, list[Pair]] = Field(default_factory=dict)
    idle_connections: int = 0
    idle: list[Pair] = Field(default_factory=list)
    # By mode of slowhttptest: without it, and beside it.
    slow: dict[str, list[Pair]] = Field(default_factory=dict)
    slow_connections: int = 0
    # The most VMs that slow clients were ever found to hold; None where nobody looked.
    slow_vms_held: int | None = None
    many_vms: int = 0
    many_vms_processes: int = 0
    many_vms_s: list[float] = Field(default_factory=list)


class Report(BaseModel):
    """All of it."""

    machine: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    page: PageFacts | None = None
    rows: list[Row] = Field(default_factory=list)
    footprints: list[Footprint] = Field(default_factory=list)
    checks: Checks = Field(default_factory=Checks)
    # What could not be measured, and why.
    problems: list[str] = Field(default_factory=list)

    def cpus_left(self, pair: Pair) -> float | None:
        """CPUs that the clients did not use on the side with; None where nobody looked."""
        cpus: int | None = self.machine.get("cpus")
        return None if cpus is None or pair.client_cpus is None else cpus - pair.client_cpus

    def row(self, program: str, variant: str, kind: str) -> Row | None:
        """One row, if it was measured."""
        wanted = (program, variant, kind)
        return next((row for row in self.rows if (row.program, row.variant, row.kind) == wanted), None)

    def native_of(self, row: Row) -> Row | None:
        """What a row is compared with: the program as an ordinary process, over the same kind of connection.

        Of two such processes it is the one that is quicker for one client.
        """
        found = [self.row(row.program, variant, row.kind) for variant in (NATIVE, NATIVE_PLAIN)]
        clients = min(self.clients(), default=1)
        return min(
            (native for native in found if native is not None),
            key=lambda native: median(native.values("p50_us", clients)) or float("inf"),
            default=None,
        )

    def versus_native(self, row: Row, name: str, clients: int) -> list[float]:
        """A figure as a multiple of native's, in each round."""
        native = self.native_of(row)
        return [] if native is None else ratios(row.values(name, clients), native.values(name, clients))

    def clients(self) -> list[int]:
        """The numbers of clients that were measured."""
        return sorted({clients for row in self.rows for clients in row.closed})


def merged(reports: Sequence[Report]) -> Report:
    """One report of several runs; of what more than one has measured, the last one's counts."""
    rows = {(row.program, row.variant, row.kind): row for report in reports for row in report.rows}
    footprints = {one.program: one for report in reports for one in report.footprints}
    checks = [report.checks.model_dump(exclude_defaults=True) for report in reports]
    return Report(
        machine=reports[0].machine,
        settings=reports[0].settings,
        page=next((report.page for report in reversed(reports) if report.page), None),
        rows=list(rows.values()),
        footprints=list(footprints.values()),
        checks=Checks.model_validate({name: value for found in checks for name, value in found.items()}),
        problems=[problem for report in reports for problem in report.problems],
    )


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of each round that both have."""
    return [value / other for value, other in zip(values, others, strict=False) if other > 0]


def median(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return float(statistics.median(values)) if values else None


def with_spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The median with the lowest and the highest; empty where there is nothing."""
    middle = median(values)
    if middle is None:
        return ""
    spread = f" ({show(min(values))} to {show(max(values))})" if len(values) > 1 else ""
    return f"{show(middle)}{spread}"
