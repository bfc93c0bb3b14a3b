"""The lines of a start have exactly the promised shape."""

from typing import Any

import pytest

from kvmserver.start_output import StartOutput, write_line


def make(count: int, ephemeral: bool, threads: int = 1) -> StartOutput:
    serve = {"ephemeral": ephemeral}
    return StartOutput({"program": "deno", "threads": threads, "serve": serve, "warmup": {"count": count}})


READY: dict[str, Any] = {"wait": "epoll", "init_ns": 161_400_000, "listeners": ["0.0.0.0:8000"]}


def test_the_lines_of_the_issue(capfd: pytest.CaptureFixture[str]) -> None:
    output = make(1000, True)
    output.ready(READY)
    expected = "Warming up the guest VM listening on 0.0.0.0:8000 (1 threads * 1000 connections * 1 requests)\n"
    assert capfd.readouterr().out == expected
    line = output.loaded_line({"warmup_ns": 55_000_000}, 73_000_000)
    assert line == "Program 'deno' loaded. epoll vm=1 ephemeral init=161ms warmup=55ms rss=73MB"


def test_the_storage_line(capfd: pytest.CaptureFixture[str]) -> None:
    make(0, True).storage_ready({"init_ns": 415_900_000})
    assert capfd.readouterr().out == "Storage VM initialized. init=416ms\n"


def test_words_that_do_not_apply_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    output = make(0, False, 4)
    output.ready(READY)
    assert capfd.readouterr().out == ""
    assert output.loaded_line({}, 10_600_000) == "Program 'deno' loaded. epoll vm=4 init=161ms rss=11MB"


def test_a_second_start_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    output = make(3, True)
    output.ready(READY)
    output.serving({"warmup_ns": 1, "workers": 1, "fork_ns": 1})
    capfd.readouterr()
    output.storage_ready({"init_ns": 1})
    output.ready(READY)
    output.progress(1)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("workers", "words"), [(1, "in 1 process ready"), (7, "in 7 processes ready")])
def test_the_line_about_the_forks(workers: int, words: str) -> None:
    line = make(0, True, 200).forked_line({"workers": workers, "fork_ns": 1_234_500_000})
    assert line == f"200 request VMs {words} 1.234 s after the snapshot"


def test_a_line_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    write_line("a\nProgram \udcff")
    assert capfd.readouterr().out == "a\\nProgram \\udcff\n"


def test_progress_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output = make(2, True)
    output.progress(1)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    output.progress(1)
    output.progress(2)
    output.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Warming up" in captured.err
