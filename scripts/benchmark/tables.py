"""The tables of a report: on a terminal, or as Markdown for a page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmark import targets
from benchmark.results import Report, Row, median, with_spread

TextRow = tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """A table before it is drawn. The first ``left`` columns are words, the others numbers."""

    title: str
    columns: TextRow
    rows: Sequence[TextRow]
    left: int = 1

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title)
        for index, name in enumerate(self.columns):
            table.add_column(name, justify="left" if index < self.left else "right", no_wrap=index < self.left)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        rule = ["---" if index < self.left else "---:" for index in range(len(self.columns))]
        lines = [self.columns, tuple(rule), *self.rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(line)} |" for line in lines)])


def all_tables(report: Report, clients: Sequence[int] = ()) -> Iterator[TextTable]:
    """Those that have a row; of the closed loop only those with so many ``clients``, if any are named."""
    for number in report.clients():
        if not clients or number in clients:
            yield closed_loop(report, number)
    for table in (open_loop(report), counters(report), footprints(report), checks(report), target_table(report)):
        if table.rows:
            yield table


def show(report: Report, console: Console, clients: Sequence[int] = ()) -> None:
    """All of them on a terminal."""
    console.print(heading(report), highlight=False, markup=False)
    for table in all_tables(report, clients):
        console.print(table.rich())


def markdown(report: Report, clients: Sequence[int] = ()) -> str:
    """All of them for a page."""
    return "\n\n".join([heading(report), *(table.markdown() for table in all_tables(report, clients))])


def heading(report: Report) -> str:
    """What was measured on, how, the page, and what went wrong."""
    lines = [", ".join(f"{name} {value}" for name, value in {**report.machine, **report.settings}.items())]
    if report.page is not None:
        page = report.page
        size = f"{page.response_bytes:,} bytes, {page.items} items"
        lines.append(f"React page: {size}, one rendering {page.rendering_us:,.0f} us natively")
    return "\n".join([*lines, *(f"not measured: {problem}" for problem in report.problems)])


def closed_loop(report: Report, clients: int) -> TextTable:
    """Latency and throughput with some number of clients."""
    names = ("p50 us", "x native", "p99 us", "p99/p50", "each us", "requests/s", "x native", "errors")
    rows = [_closed_row(report, row, clients) for row in report.rows if clients in row.closed]
    noun = "client" if clients == 1 else "clients"
    title = f"{clients} {noun}, closed loop: median of the rounds (lowest to highest)"
    return TextTable(title, ("program", "variant", "connections", *names), rows, left=3)


def _closed_row(report: Report, row: Row, clients: int) -> TextRow:
    return (
        row.program,
        row.variant,
        row.kind,
        with_spread(row.values("p50_us", clients), _whole),
        _ratio(report.versus_native(row, "p50_us", clients)),
        _middle(row.values("p99_us", clients), _whole),
        _middle(row.values("tail", clients), _tenths),
        _middle(row.values("each_us", clients), _whole),
        _middle(row.values("requests_per_s", clients), _whole),
        _ratio(report.versus_native(row, "requests_per_s", clients)),
        str(sum(sample.errors for sample in row.closed[clients])),
    )


def open_loop(report: Report) -> TextTable:
    """Latency at a constant rate, from the instant at which each request was due."""
    rows: list[TextRow] = []
    for row in report.rows:
        for fraction, samples in row.open.items():
            names = ("rate", "p50_us", "p90_us", "p99_us", "p999_us", "max_us")
            figures = tuple(_middle([getattr(sample, name) for sample in samples], _whole) for name in names)
            tail = _middle([sample.p99_us / max(sample.p50_us, 1) for sample in samples], _tenths)
            failed = sum(sample.errors + sample.unfinished for sample in samples)
            rows.append((row.program, row.variant, row.kind, f"{fraction:.0%}", *figures, tail, str(failed)))
    headings = (
        "of its best rate",
        "requests/s",
        "p50 us",
        "p90 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "p99/p50",
        "failed",
    )
    title = "Open loop: a constant rate, latency from the instant at which a request was due"
    return TextTable(title, ("program", "variant", "connections", *headings), rows, left=3)


# Name in the statistics of kvmserver, heading, what it is divided by.
COUNTERS = (
    ("exits", "exits", 1),
    ("system_calls", "calls by the host", 1),
    ("calls_in_guest", "calls in the guest", 1),
    ("faults", "signals of faults", 1),
    ("page_faults", "page faults", 1),
    ("switches", "switches", 1),
    ("dirty_pages", "dirty pages", 1),
    # Pages of 4 KiB.
    ("copied_pages", "copied KiB", 0.25),
    ("dropped_pages", "dropped pages", 1),
    ("run_ns", "run us", 1000),
    ("reset_ns", "reset us", 1000),
)


def counters(report: Report) -> TextTable:
    """What one request cost, by kvmserver's own counters."""
    rows = [row for row in report.rows if row.counters]
    found = [counter for counter in COUNTERS if any(counter[0] in row.counters for row in rows)]
    lines = [
        (
            row.program,
            row.variant,
            row.kind,
            *(_tenths(row.counters[name] / divisor) if name in row.counters else "" for name, _, divisor in found),
        )
        for row in rows
    ]
    headings = [heading for _, heading, _ in found]
    return TextTable("Counters for one request", ("program", "variant", "connections", *headings), lines, left=3)


def footprints(report: Report) -> TextTable:
    """Start-up and memory."""
    rows = [
        (
            one.program,
            f"{one.start_native_s:.2f}",
            f"{one.start_isolated_s:.2f}",
            f"{one.memory_mib:.0f}",
            f"{one.memory_per_vm_mib:.1f}",
        )
        for one in report.footprints
    ]
    columns = ("program", "start native s", "start isolated s", "memory MiB", "per added VM MiB")
    return TextTable("Start without warm-up, and memory with request VMs that were all used", columns, rows)


def checks(report: Report) -> TextTable:
    """The experiments of their own."""
    found = report.checks
    rows: list[TextRow] = []
    experiments = [
        ("a busy loop: two instead of one", found.two_loops),
        *((f"{program}: two VMs instead of one", pairs) for program, pairs in found.two_vms.items()),
        *((f"{program}: two native processes instead of one", pairs) for program, pairs in found.two_natives.items()),
        *((f"one CPU each: {compared}", pairs) for compared, pairs in found.one_cpu.items()),
        (f"{found.idle_connections:,} idle kept connections beside the others", found.idle),
        *(
            (f"{found.slow_connections:,} connections of slowhttptest, {mode}", pairs)
            for mode, pairs in found.slow.items()
        ),
    ]
    for name, pairs in experiments:
        if pairs:
            sides = [[pair.without for pair in pairs], [pair.with_it for pair in pairs]]
            rates = [_middle(side, _whole) for side in sides]
            left = [cpus for pair in pairs if (cpus := report.cpus_left(pair)) is not None]
            ratios = with_spread([pair.ratio for pair in pairs], _hundredths)
            rows.append((name, *rates, ratios, _middle(left, _hundredths)))
    columns = ("experiment", "without", "with", "ratio", "CPUs left by the clients")
    return TextTable("Experiments of their own, requests/s", columns, rows)


def target_table(report: Report) -> TextTable:
    """What was promised, what was found."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [(one.promise, one.limit, one.measured, words[one.met]) for one in targets.evaluate(report)]
    return TextTable("Targets", ("promise", "limit", "measured", "met"), rows)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


def _hundredths(value: float) -> str:
    return f"{value:,.2f}"


def _middle(values: Sequence[float], show_number: Callable[[float], str]) -> str:
    middle = median(values)
    return "" if middle is None else show_number(middle)


def _ratio(values: Sequence[float]) -> str:
    return with_spread(values, _hundredths)
