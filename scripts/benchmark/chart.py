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
BAR, GAP, GROUP_GAP, TOP, BOTTOM = 15, 3, 16, 62, 38
# Of one decade to the next: what is 100 times slower is not 100 times longer.
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
    """One bar of each program."""

    label: str
    variant: str
    kind: str
    color: str


SERIES = (
    Series("native process", NATIVE, KEPT, "native"),
    Series("kvmserver, a fresh VM for every request", RESET, KEPT, "kvmserver"),
    Series("a fork for every request", FORK, NEW, "fork"),
    Series("a process for every request", PROCESS, NEW, "process"),
)


@dataclass(frozen=True)
class Bar:
    """A value of a series, microseconds."""

    series: Series
    value: float


@dataclass(frozen=True)
class Group:
    """The bars of one program."""

    program: str
    bars: Sequence[Bar]


def groups(report: Report) -> list[Group]:
    """What there is of each program; programs without an isolated row are left out."""
    found = []
    for program in dict.fromkeys(row.program for row in report.rows):
        bars = []
        for series in SERIES:
            row = report.row(program, series.variant, series.kind)
            value = median(row.values("p50_us", CLIENTS)) if row else None
            if value is not None:
                bars.append(Bar(series, value))
        if any(bar.series.variant == RESET for bar in bars):
            found.append(Group(program, bars))
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
        values = [bar.value for group in found for bar in group.bars]
        self._low = math.floor(math.log10(max(min(values), 1.0)))
        self._high = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._height = TOP + BOTTOM + sum(_height(group) + GROUP_GAP for group in found)

    def lines(self) -> Iterator[str]:
        label = "Time of one request by program: native, in kvmserver, and with a fork or a process for every request"
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
        for series in dict.fromkeys(bar.series for group in self._groups for bar in group.bars):
            yield f'<rect class="{series.color}" x="{left}" y="32" width="11" height="11" rx="2"/>'
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
        native = next((bar.value for bar in group.bars if bar.series.variant == NATIVE), None)
        for index, bar in enumerate(group.bars):
            y, end = top + index * (BAR + GAP), self._x(bar.value)
            color, width = bar.series.color, max(end - LABEL_WIDTH, 1)
            yield f'<rect class="{color}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            times = f" ({bar.value / native:,.1f}x)" if native and bar.series.variant != NATIVE else ""
            yield _text(end + 6, y + BAR - 3, f"{bar.value:,.0f}{times}", "")

    def _x(self, value: float) -> float:
        share = (math.log10(max(value, 1.0)) - self._low) / (self._high - self._low)
        return LABEL_WIDTH + max(share, 0.0) * (WIDTH - LABEL_WIDTH - NUMBER_WIDTH)

    def _note(self) -> str:
        words = [str(self._report.machine[name]) for name in ("cpu", "kvm", "date") if name in self._report.machine]
        cpus = self._report.machine.get("cpus")
        words += [f"{cpus} CPUs"] if cpus else []
        return ", ".join([*words, "-t 1"])


def _height(group: Group) -> int:
    return len(group.bars) * (BAR + GAP) - GAP


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    class_ = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text{class_} {place} text-anchor="{anchor}">{escape(text)}</text>'
