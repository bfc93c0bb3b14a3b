"""What scripts/bench makes of its samples: statistics, targets, tables and the chart; nothing is timed here."""

import argparse
import dataclasses
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from benchmark import chart, measuring, programs, serving, tables, targets
from benchmark.results import (
    KEPT,
    NATIVE,
    NATIVE_PLAIN,
    NEW,
    Checks,
    Footprint,
    OpenSample,
    PageFacts,
    Pair,
    Report,
    Row,
    Sample,
    median,
    merged,
    ratios,
    with_spread,
)
from benchmark.targets import Target
from benchmark.variants import FORK, PROCESS, RESET, VARIANTS, command

ROOT = Path(__file__).resolve().parents[2]


def sample(p50_us: float, rate: float = 1000, p99_us: float | None = None, errors: int = 0) -> Sample:
    p99_us = 2 * p50_us if p99_us is None else p99_us
    return Sample(
        p50_us=p50_us, p99_us=p99_us, max_us=9 * p50_us, each_us=p50_us + 5, requests_per_s=rate, errors=errors
    )


def row(program: str, variant: str, kind: str, *samples: Sample, exits: float | None = None) -> Row:
    counters = {} if exits is None else {"exits": exits, "copied_pages": 8.0, "reset_ns": 12_345.0}
    return Row(program=program, variant=variant, kind=kind, closed={1: list(samples)}, counters=counters)


def small_report() -> Report:
    report = Report(machine={"cpu": "a CPU", "cpus": 2, "kvm": "kvm_test", "date": "2026-11-21"})
    report.rows = [
        row("C hello", NATIVE, KEPT, sample(20), sample(40), sample(30)),
        row("C hello", RESET, KEPT, sample(50), sample(80), sample(90, errors=2), exits=2.01),
        row("C hello", FORK, NEW, sample(200, rate=100)),
        row("C hello", PROCESS, NEW, sample(900, rate=10)),
    ]
    return report


def target(report: Report, promise: str) -> Target:
    (found,) = [one for one in targets.evaluate(report) if one.promise.startswith(promise)]
    return found


def test_a_ratio_is_taken_within_a_round() -> None:
    """Medians alone would say 80/30; a round in which all was slow must not count twice."""
    report = small_report()
    assert report.versus_native(report.rows[1], "p50_us", 1) == [2.5, 2.0, 3.0]
    assert median([2.5, 2.0, 3.0]) == 2.5


def test_of_two_ordinary_processes_the_quicker_one_is_compared_with() -> None:
    """Flags that serve kvmserver must not slow down what it is measured against."""
    report = small_report()
    plain = row("C hello", NATIVE_PLAIN, KEPT, sample(25), sample(20), sample(25))
    report.rows.append(plain)
    assert report.native_of(report.rows[1]) is plain
    assert report.versus_native(report.rows[1], "p50_us", 1) == [2.0, 4.0, 3.6]
    plain.closed[1] = [sample(31)] * 3
    assert report.native_of(report.rows[1]) is report.rows[0]


def test_only_programs_with_flags_of_v8_have_an_ordinary_process_without() -> None:
    (plain,) = [one for one in VARIANTS if one.name == NATIVE_PLAIN]
    program = programs.Program("x", ("serve", "{port}"), 1)
    assert command(program, plain, 80) is None
    assert command(dataclasses.replace(program, v8_flags=True), plain, 80) == ["serve", "80"]


def test_statistics_of_nothing() -> None:
    assert median([]) is None
    assert ratios([1.0], []) == []
    assert ratios([1.0, 2.0], [0.0, 4.0]) == [0.5]
    assert with_spread([], str) == ""
    assert with_spread([2.0], str) == "2.0"
    assert with_spread([1.0, 9.0, 2.0], str) == "2.0 (1.0 to 9.0)"
    assert Report().native_of(Row(program="x", variant=RESET, kind=KEPT)) is None
    assert Row(program="x", variant=RESET, kind=KEPT).best_rate() is None


def test_the_best_rate_is_that_of_some_number_of_clients() -> None:
    found = Row(program="x", variant=NATIVE, kind=KEPT, closed={1: [sample(1, 10), sample(1, 99)], 8: [sample(1, 70)]})
    assert found.best_rate() == 70


def test_a_report_survives_its_file() -> None:
    report = small_report()
    report.page = PageFacts(items=180, rendering_us=750, response_bytes=60_000)
    report.rows[0].open[0.5] = [open_sample()]
    report.checks = Checks(two_vms={"C hello": [Pair(without=1, with_it=2)]})
    text = serving.as_json(report)
    assert Report.model_validate_json(text) == report
    medians = json.loads(text)["medians"]
    assert medians[1] == {
        "program": "C hello",
        "variant": RESET,
        "connections": KEPT,
        "clients": 1,
        "p50_us": 80,
        "p99_us": 160,
        "each_us": 85,
        "requests_per_s": 1000,
    }


def test_runs_are_merged_row_by_row() -> None:
    first, second = small_report(), Report(machine={"cpu": "the same"}, problems=["Go hello: missing"])
    second.rows = [row("C hello", RESET, KEPT, sample(33)), row("Go hello", NATIVE, KEPT, sample(60))]
    first.checks = Checks(many_vms=200, many_vms_s=[2.5])
    second.checks = Checks(idle_connections=1000, idle=[Pair(without=1, with_it=1)])
    found = merged([first, second])
    assert found.machine == first.machine
    assert [(one.program, one.variant) for one in found.rows] == [
        ("C hello", NATIVE),
        ("C hello", RESET),
        ("C hello", FORK),
        ("C hello", PROCESS),
        ("Go hello", NATIVE),
    ]
    assert found.rows[1].median("p50_us", 1) == 33
    assert (found.checks.many_vms_s, found.checks.idle_connections) == ([2.5], 1000)
    assert found.problems == ["Go hello: missing"]


def test_one_program_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(name: str, _directory: Path) -> programs.Program:
        if name == "Go hello":
            raise SystemExit("error: go is missing")
        return programs.Program(name, (), 0)

    monkeypatch.setattr(programs, "make", make)
    monkeypatch.setattr(measuring, "measure", lambda program, *_: [row(program.name, NATIVE, KEPT, sample(20))])
    parser = argparse.ArgumentParser()
    serving.add_arguments(parser)
    options = parser.parse_args(["--quick", "--only", "hello"])
    options.json = tmp_path / "figures.json"
    serving.run(options, Console(quiet=True))
    report = Report.model_validate_json(options.json.read_text())
    assert [one.program for one in report.rows] == ["C hello", "Deno hello", "Node hello"]
    assert report.problems == ["Go hello: error: go is missing"]
    assert "not measured: Go hello: error: go is missing" in tables.markdown(report)


def open_sample(p99_us: float = 90) -> OpenSample:
    figures = {"p50_us": 30, "p90_us": 60, "p99_us": p99_us, "p999_us": 200, "max_us": 300}
    return OpenSample(rate=500, requests_per_s=499, errors=1, unfinished=2, **figures)


def test_targets_of_latency_and_exits() -> None:
    report = small_report()
    met = target(report, "C hello, keep-alive: p50 /")
    assert met == Target("C hello, keep-alive: p50 / native's", "<= 2.5x", "2.50x (2.00x to 3.00x)", True)
    report.rows[1].closed[1][0] = sample(60)
    assert target(report, "C hello, keep-alive: p50 /").met is False
    assert target(report, "C hello: exits").met is True
    report.rows[1].counters["exits"] = 2.1
    assert target(report, "C hello: exits").met is False
    assert target(report, "C hello, new connections: p50").met is None


def test_the_target_of_the_tail_compares_p99_over_p50() -> None:
    report = small_report()
    assert target(report, "C hello, keep-alive: p99/p50").met is True
    report.rows[1].closed[1] = [sample(50, p99_us=150)] * 3
    assert target(report, "C hello, keep-alive: p99/p50").measured == "1.50x (1.50x to 1.50x)"
    assert target(report, "C hello, keep-alive: p99/p50").met is False


def test_targets_of_throughput_compare_the_best_rates() -> None:
    report = small_report()
    found = target(report, "C hello, keep-alive: requests/s / fork")
    assert (found.measured, found.met) == ("10.00x", True)
    report.rows.append(row("Deno hello", RESET, KEPT, sample(100, rate=5000)))
    report.rows.append(row("Deno hello", PROCESS, NEW, sample(100, rate=51)))
    assert target(report, "Deno hello, keep-alive: requests/s").met is False


def test_targets_of_the_experiments() -> None:
    report = Report()
    assert all(one.met is None for one in targets.evaluate(report))
    report.checks = Checks(
        two_vms={"C hello": [Pair(without=100, with_it=175), Pair(without=100, with_it=190)]},
        idle_connections=1000,
        idle=[Pair(without=100, with_it=96)],
        many_vms=200,
        many_vms_s=[2.9, 3.5, 2.8],
    )
    assert target(report, "C hello: requests/s of two VMs").met is True
    assert target(report, "1,000 idle").met is False
    assert target(report, "200 request VMs") == Target(
        "200 request VMs from the snapshot to ready", "<= 3 s", "2.90 s (2.80 s to 3.50 s)", True
    )


def test_every_table_has_its_rows_and_their_number_of_columns() -> None:
    report = small_report()
    report.page = PageFacts(items=180, rendering_us=750, response_bytes=60_000)
    report.rows[1].open[0.8] = [open_sample()]
    report.footprints = [
        Footprint(program="x", start_native_s=0, start_isolated_s=1, memory_mib=40, memory_per_vm_mib=1)
    ]
    report.machine = {"cpus": 2}
    report.checks = Checks(
        two_vms={"C hello": [Pair(without=100, with_it=150, client_cpus=0.5)]},
        two_natives={"C hello": [Pair(without=1, with_it=2)]},
        two_loops=[Pair(without=10, with_it=19)],
        one_cpu={
            f"Deno hello, {RESET}, {KEPT} / {PROCESS}": [Pair(without=50, with_it=9000)],
            f"Deno hello, {NATIVE}, {NEW} / {PROCESS}": [Pair(without=50, with_it=20000)],
        },
    )
    found = list(tables.all_tables(report))
    assert len(found) == 6
    assert all(len(line) == len(table.columns) for table in found for line in table.rows)
    assert len(list(tables.all_tables(report, [8]))) == 5
    text = tables.markdown(report)
    assert "one rendering 750 us natively" in text
    assert "| C hello | isolated, reset | keep-alive | 80 (50 to 90) | 2.50 (2.00 to 3.00) | 160 |" in text
    assert "| C hello | isolated, reset | keep-alive | 80% | 500 | 30 | 60 | 90 | 200 | 300 | 3.0 | 3 |" in text
    # 8 pages of 4 KiB, nanoseconds as microseconds.
    assert "| C hello | isolated, reset | keep-alive | 2.0 | 32.0 | 12.3 |" in text
    assert "| a busy loop: two instead of one | 10 | 19 | 1.90 |  |" in text
    assert (
        "| one CPU each: Deno hello, native, new connections / process per request | 50 | 20,000 | 400.00 |  |" in text
    )
    assert (
        "| one CPU each: Deno hello, isolated, reset, keep-alive / process per request | >= 100x | 180.00x | yes |"
        in text
    )
    assert "one CPU each: Deno hello, native, new connections / process per request | >=" not in text
    assert "| C hello: two VMs / one VM's, for each CPU that the clients left | >= 0.9x | 1.00x | yes |" in text
    assert "| C hello: two VMs instead of one | 100 | 150 | 1.50 | 1.50 |" in text
    assert "| 1,000 idle kept connections: requests/s / without them | >= 0.97x |  | not measured |" in text


def test_the_chart_shows_every_program_that_has_an_isolated_row() -> None:
    report = small_report()
    report.rows.append(row("<odd & only native>", NATIVE, KEPT, sample(10)))
    report.rows.append(row("R&D", RESET, KEPT, sample(100_000)))
    drawing = ElementTree.fromstring(chart.draw(report))
    texts = [element.text for element in drawing.iter() if element.tag.endswith("text")]
    assert "80 (2.7x)" in texts
    assert "200 (6.7x)" in texts
    assert "R&D" in texts
    assert "<odd & only native>" not in texts
    assert "100,000" in texts
    points = [element for element in drawing.iter() if element.tag.endswith("circle")]
    assert len(points) == 4 + 4 + 1  # the legend, C hello, R&D
    assert all(0 <= float(point.attrib["cx"]) <= chart.WIDTH for point in points)


def test_the_chart_compares_with_the_quicker_of_two_native_ones() -> None:
    report = small_report()
    report.rows.append(row("C hello", NATIVE_PLAIN, KEPT, sample(20), sample(20), sample(20)))
    texts = [element.text for element in ElementTree.fromstring(chart.draw(report)).iter()]
    assert "80 (4.0x)" in texts
    assert "80 (2.7x)" not in texts


def test_there_is_no_chart_of_nothing() -> None:
    with pytest.raises(ValueError, match="no isolated rows"):
        chart.draw(Report())


def run_bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "scripts/bench"), *words], capture_output=True, text=True)


def test_a_missed_target_is_an_exit_status_where_that_is_asked_for(tmp_path: Path) -> None:
    report, file = small_report(), tmp_path / "figures.json"
    # Made-up figures that keep all that they say something about; the rest was not measured, and is no miss.
    missed = [one for one in targets.evaluate(report) if one.met is False]
    assert not missed
    file.write_text(serving.as_json(report))
    assert run_bench("show", str(file), "--strict").returncode == 0
    report.rows[1].counters["exits"] = 2.1
    file.write_text(serving.as_json(report))
    assert run_bench("show", str(file)).returncode == 0
    done = run_bench("show", str(file), "--strict")
    assert done.returncode == 3
    assert done.stderr == "bench: missed: C hello: exits a request: 2.10, not <= 2\n"
