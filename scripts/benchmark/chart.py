"""The chart of the README: an SVG, made from the JSON of a run, that is legible on light and on dark pages."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmark.results import KEPT, NATIVE, NEW, Report, median
from benchmark.variants import FORK, PROCESS, RESET

# One client, p50: what a single request takes.
CLIENTS = 1
WIDTH = 760
LABEL_WIDTH = 190
NUMBER_WIDTH = 110
STEP, GROUP_GAP, TOP, BOTTOM, RADIUS = 18, 14, 62, 38, 5
_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.note, .tick { fill: #59636e; }
.name { font-weight: 600; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.native { fill: #8c959f; }
.kvmserver { fill: #0969da; }
.fork { fill: #bf8700; }
.process { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .note, .tick { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .native { fill: #9198a1; }
  .kvmserver { fill: #4493f8; }
  .fork { fill: #d29922; }
  .process { fill: #f85149; }
}
"""


@dataclass(frozen=True)
class Series:
    """One point of each program."""

    label: str
    variant: str
    kind: str
    color: str


# Points on a logarithmic axis, no points: what is 100 times slower is not 100 times longer.
SERIES = (
    Series("native", NATIVE, KEPT, "native"),
    Series("kvmserver: a fresh VM for each request", RESET, KEPT, "kvmserver"),
    Series("a fork for each", FORK, NEW, "fork"),
    Series("a process for each", PROCESS, NEW, "process"),
)


@dataclass(frozen=True)
class Point:
    """A value of a series, microseconds."""

    series: Series
    value: float


@dataclass(frozen=True)
class Group:
    """The points of one program."""

    program: str
    points: Sequence[Point]


def groups(report: Report) -> list[Group]:
    """What there is of each program; programs without an isolated row are left out."""
    found = []
    for program in dict.fromkeys(row.program for row in report.rows):
        points = []
        for series in SERIES:
            row = report.row(program, series.variant, series.kind)
            if row and series.variant == NATIVE:
                # Of several ordinary processes the quicker one, as everywhere.
                row = report.native_of(row)
            value = median(row.values("p50_us", CLIENTS)) if row else None
            if value is not None:
                points.append(Point(series, value))
        if any(point.series.variant == RESET for point in points):
            found.append(Group(program, points))
    return found


def draw(report: Report) -> str:
    """The whole file. Raises ValueError for a report without rows over kept connections."""
    found = groups(report)
    if not found:
        raise ValueError("the report has no isolated rows with one client: run scripts/bench without --quick or --kind")
    return "\n".join(_Drawing(report, found).lines()) + "\n"


class _Drawing:
    def __init__(self, report: Report, found: Sequence[Group]) -> None:
        self._report = report
        self._groups = found
        values = [point.value for group in found for point in group.points]
        self._low = math.floor(math.log10(max(min(values), 1.0)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._height = TOP + BOTTOM + sum(_height(group) + GROUP_GAP for group in found)

    def lines(self) -> Iterator[str]:
        label = "Time of one request by program: native, in kvmserver, and with a fork or a process for each request"
        size = f'viewBox="0 0 {WIDTH} {self._height}" width="{WIDTH}" height="{self._height}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
        yield f"<style>{_STYLE}</style>"
        yield _text(0, 18, "Time of one request (p50, one client), microseconds, logarithmic", "title")
        yield from self._legend()
        yield from self._grid()
        top = TOP
        for group in self._groups:
            yield from self._group(group, top)
            top += _height(group) + GROUP_GAP
        yield _text(0, self._height - 8, self._note(), "note")
        yield "</svg>"

    def _legend(self) -> Iterator[str]:
        left = 0
        for series in dict.fromkeys(point.series for group in self._groups for point in group.points):
            yield f'<circle class="{series.color}" cx="{left + RADIUS}" cy="38" r="{RADIUS}"/>'
            yield _text(left + 16, 42, series.label, "")
            left += 34 + round(len(series.label) * 6.2)

    def _grid(self) -> Iterator[str]:
        bottom = self._height - BOTTOM
        for power in range(self._low, self._high + 1):
            left = self._x(10.0**power)
            yield f'<line class="grid" x1="{left:.1f}" y1="{TOP - 6}" x2="{left:.1f}" y2="{bottom}"/>'
            yield _text(left, bottom + 14, f"{10**power:,}", "tick", "middle")

    def _group(self, group: Group, top: int) -> Iterator[str]:
        yield _text(0, top + _height(group) / 2 + 4, group.program, "name")
        native = next((point.value for point in group.points if point.series.variant == NATIVE), None)
        for index, point in enumerate(group.points):
            x, y = self._x(point.value), top + index * STEP + STEP / 2
            yield f'<line class="grid" x1="{LABEL_WIDTH}" y1="{y}" x2="{x:.1f}" y2="{y}"/>'
            yield f'<circle class="{point.series.color}" cx="{x:.1f}" cy="{y}" r="{RADIUS}"/>'
            times = f" ({point.value / native:,.1f}x)" if native and point.series.variant != NATIVE else ""
            yield _text(x + RADIUS + 4, y + 4, f"{point.value:,.0f}{times}", "")

    def _x(self, value: float) -> float:
        share = (math.log10(max(value, 1.0)) - self._low) / (self._high - self._low)
        return LABEL_WIDTH + max(share, 0.0) * (WIDTH - LABEL_WIDTH - NUMBER_WIDTH)

    def _note(self) -> str:
        words = [str(self._report.machine[name]) for name in ("cpu", "kvm", "date") if name in self._report.machine]
        cpus = self._report.machine.get("cpus")
        words += [f"{cpus} CPUs"] if cpus else []
        return ", ".join([*words, "-t 1"]) + ". Forks and processes over new connections, the others over a kept one."


def _height(group: Group) -> int:
    return len(group.points) * STEP


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    class_ = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text{class_} {place} text-anchor="{anchor}">{escape(text)}</text>'
