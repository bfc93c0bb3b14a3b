"""Supervisor and tenant as real processes over a pretended data plane: start, failure, signals, restart.

Properties: the exit code is right, the message is one sentence, no process is left behind.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from .conftest import Command, Running

Start = Callable[..., Running]


def test_a_server_prints_exactly_the_two_lines(start: Start) -> None:
    running = start("server", "-e", "-t", "5", "--vms-per-process", "2", "-w", "20")
    assert running.lines[0] == (
        "Warming up the guest VM listening on 0.0.0.0:8000 (1 threads * 20 connections * 1 requests)\n"
    )
    pattern = r"Program 'server' loaded\. epoll vm=5 ephemeral init=161ms warmup=\d+ms rss=[1-9]\d*MB\n"
    assert re.fullmatch(pattern, running.lines[1])
    assert running.finish()[0] == 0


def test_the_line_has_no_more_words_than_are_true(start: Start) -> None:
    running = start("server")
    assert re.fullmatch(r"Program 'server' loaded\. epoll vm=1 init=161ms rss=\d+MB\n", running.lines[0])
    assert running.finish(signal.SIGINT)[0] == 0


@pytest.mark.parametrize(
    ("name", "options", "code", "error"),
    [
        ("status7", [], 7, ""),
        ("segfault", [], 139, "program 'segfault' was killed by signal 11 (SIGSEGV): rip 0x1000\n"),
        ("status7", ["-e"], 1, "error: program 'status7' ended with status 7 before it listened\n"),
        ("segfault", ["-t1"], 1, "error: program 'segfault' was killed by signal 11 (SIGSEGV): rip 0x1000 before it"),
        ("hang", ["-e"], 1, "error: program 'hang' did not listen within 20s\n"),
        ("busy", ["-e"], 1, "error: program 'busy' cannot listen on 0.0.0.0:8000: address already in use\n"),
        (
            "taken",
            [],
            1,
            "error: cannot listen on 0.0.0.0:8000: address already in use\n\nhint: stop the other server\n",
        ),
        ("sick", ["-w", "9"], 1, "error: warm-up request 3 of 9 (GET /) was answered with status 500\n"),
        ("mute", ["-w1"], 1, "error: warm-up request 1 of 1 (GET /) failed: the program took longer than 8s\n"),
        ("panic", [], 1, "error: internal error: Panic: index out of bounds\n"),
        ("notelf", [], 126, "error: cannot run 'notelf': not an x86-64 ELF file\n"),
        ("kill9", [], 1, "error: the process that ran 'kill9' ended (killed by signal 9 (SIGKILL))\n"),
        ("stillborn", [], 1, "error: cannot create a VM: no space left on device\n"),
    ],
)
def test_every_failed_start_is_one_sentence(
    command: Command, name: str, options: list[str], code: int, error: str
) -> None:
    result = command.run(*options, "run", command.program(name))
    assert result.returncode == code
    assert error in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\nerror: ") == 0


def test_the_program_gets_its_words_untouched(command: Command) -> None:
    words = ["--allow-all", "-e", "--", "++", "", "a b", "--help", "run"]
    result = command.run("--allow-read", "--env", "A=1", "run", command.program("echo"), *words)
    config = json.loads(result.stdout)
    assert config["arguments"] == words
    assert config["name"] == "./echo"
    assert config["program"] == str(command.directory / "echo")
    assert config["read"] == ["/"]
    assert ["A", "1"] in config["environment"]


def test_standard_streams_are_the_programs_own(command: Command) -> None:
    result = command.run("run", command.program("cat"), text="line 1\nline 2\n")
    assert (result.stdout, result.stderr, result.returncode) == ("line 1\nline 2\n", "to stderr\n", 0)


def test_closed_standard_streams_do_no_harm(command: Command) -> None:
    words = [sys.executable, "-m", "kvmserver", "run", command.program("status7")]
    shell = ["sh", "-c", f"{shlex.join(words)} <&- >&- 2>&-"]
    assert subprocess.run(shell, env=command.environment, cwd=command.directory, timeout=30).returncode == 7


def test_a_run_table_starts_the_server(command: Command) -> None:
    command.program("echo")
    (command.directory / "kvmserver.toml").write_text('[run]\nprogram = "./echo"\nargs = ["x"]\n')
    assert json.loads(command.run().stdout)["arguments"] == ["x"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_service_ends_the_program(command: Command, number: int, code: int) -> None:
    running = command.start_unread("run", command.program("sleep"))
    wait_for(lambda: len(psutil.Process(running.pid).children(recursive=True)) == 1)
    time.sleep(0.3)
    running.send_signal(number)
    assert running.wait(timeout=10) == code


def test_statistics_of_all_workers_are_added_up(start: Start) -> None:
    running = start("server", "-t", "5", "--vms-per-process", "2")
    running.process.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    code, err = running.finish()
    assert code == 0
    assert re.search(r"info statistics workers=3 rss_bytes=\d+ requests=15 reset_ns_max=12 threads=5\n", err)


def test_a_second_signal_ends_at_once(start: Start) -> None:
    running = start("deaf")
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert running.process.poll() is None
    assert running.finish()[0] == 143


def test_a_stuck_worker_does_not_hold_up_the_end(start: Start) -> None:
    running = start("deaf")
    begin_s = time.monotonic()
    assert running.finish()[0] == 0
    assert 10 <= time.monotonic() - begin_s < 20


def test_a_dying_worker_is_restarted_with_back_off(start: Start) -> None:
    running = start("suicide")
    time.sleep(1.5)
    code, err = running.finish()
    assert code == 0
    waits = re.findall(r"worker 0 ended \(killed by signal 9 \(SIGKILL\)\); starting it again in ([\d.]+)s", err)
    assert waits[:2] == ["0.1", "0.2"]


def test_a_dead_tenant_is_started_again(start: Start) -> None:
    running = start("server", "-t", "2", "-w", "3")
    supervisor = psutil.Process(running.process.pid)
    (first,) = supervisor.children()
    workers = first.children()
    first.kill()
    wait_for(lambda: any(child.pid != first.pid and child.children() for child in supervisor.children()))
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    time.sleep(0.3)
    code, err = running.finish()
    assert code == 0
    assert "the tenant of 'server' ended (killed by signal 9 (SIGKILL)); starting it again in 0.1s" in err
    assert "program 'server' serves again" in err


def test_nothing_outlives_the_supervisor(start: Start) -> None:
    running = start("server", "-t", "2", "--vms-per-process", "1")
    ours = psutil.Process(running.process.pid).children(recursive=True)
    assert len(ours) == 3
    running.process.kill()
    wait_for(lambda: not any(is_alive(process) for process in ours))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_guest_text_in_the_log_is_escaped(start: Start) -> None:
    running = start("server")
    time.sleep(0.2)
    assert "warning killed by signal 11\\x1b[31m\n" in running.finish()[1]


def test_a_full_or_closed_output_does_not_stop_the_service(command: Command) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    running = command.start_unread("run", command.program("server"), stdout=write_end)
    os.close(write_end)
    wait_for(lambda: len(psutil.Process(running.pid).children(recursive=True)) == 2)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=10) == 0


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "not within the time"
        time.sleep(0.02)
