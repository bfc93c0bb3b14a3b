"""Starts: the exact lines of a good one, and one clear sentence and exit code 1 for each that fails."""

import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, ask, ask_often, exchange, free_port, wait_until


def test_the_two_lines_have_the_promised_shape(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, threads=2, warmup=50)
    assert service.ready is not None
    first, second = service.ready.lines
    assert first == f"Warming up the guest VM listening on 0.0.0.0:{port} (1 threads * 50 connections * 1 requests)"
    shape = r"Program 'server_epoll' loaded\. epoll vm=2 ephemeral init=\d+ms warmup=\d+ms rss=\d+MB"
    assert re.fullmatch(shape, second)
    kvmserver.stop(service)


def test_the_default_number_of_vms_is_one_and_zero_means_cpus(guests: Guests, kvmserver: Kvmserver) -> None:
    import os

    for threads, expected in ((1, 1), (0, len(os.sched_getaffinity(0)))):
        port = free_port()
        service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, threads=threads)
        assert service.ready is not None
        assert service.ready.vms == expected
        assert service.ask().body == "1\n"
        kvmserver.stop(service)


def test_the_port_is_not_open_before_the_line(guests: Guests, kvmserver: Kvmserver) -> None:
    """N15: real clients are never served by the master."""
    port = free_port()
    service = kvmserver.start(
        "-e", "--warmup", "3000", "--allow-all", "run", guests.c("server_epoll"), str(port), port=port
    )
    refused = 0
    while "Program" not in service.output and service.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            refused += 1
        time.sleep(0.005)
    service.wait_ready()
    assert refused > 0
    assert service.ask().body == "3001\n"
    kvmserver.stop(service)


# ---- warm-up ----


def write_config(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_warmup_requests_of_the_file_are_taken_in_turn(guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    port = free_port()
    config = write_config(
        scratch / "kvmserver.toml",
        f"""
ephemeral = true
verify-reset = true
allow-all = true

[run]
program = "{guests.c("failures")}"
args = ["{port}"]

[[warmup]]
path = "/"

[[warmup]]
method = "POST"
path = "/echo"
headers = {{ "X-Test" = "1" }}
body = "some text"

[[warmup]]
path = "/status/500"
status = 500
""",
    )
    service = kvmserver.start("-c", config, port=port).wait_ready()
    assert service.ask().body == "2\n", "one of the three requests counts"
    kvmserver.stop(service)


def test_warmup_requests_of_the_command_line(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    options = ["--warmup-request", "GET /", "--warmup-request", "GET /slow/1", "--warmup-request", "POST /echo"]
    service = kvmserver.serve([guests.c("failures"), str(port)], port, *options, warmup=9)
    assert service.ask().body == "7\n", "nine requests, three of which do not count"
    kvmserver.stop(service)


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        ("error-on-request", ["--warmup", "3"], "500"),
        ("hang-on-request", ["--warmup", "3", "--max-request-time", "500ms"], "500ms|cannot happen"),
        ("serve", ["--warmup-request", "GET /segv"], "SIGSEGV"),
        ("serve", ["--warmup-request", "GET /exit"], "status 7"),
        ("serve", ["--warmup-request", "GET /nonsense"], "HTTP"),
        ("serve", ["--warmup-request", "GET /no-answer"], "answered"),
        ("serve", ["--warmup-request", "GET /half-head"], "incomplete"),
        ("serve", ["--warmup-request", "GET /", "--warmup-request", "GET /status/500"], "500"),
    ],
)
def test_a_bad_warmup_ends_the_start(
    mode: str, options: list[str], reason: str, guests: Guests, kvmserver: Kvmserver
) -> None:
    done = kvmserver.run("-e", "--allow-all", *options, "run", guests.c("failures"), str(free_port()), mode)
    error = done.stderr.decode()
    assert done.returncode == 1, error
    assert "warm-up request" in error
    assert re.search(reason, error)
    assert "Traceback" not in error
    assert b"Program" not in done.stdout


# ---- starts that fail ----


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("exit-early", "status 3"), ("crash-early", "SIGSEGV"), ("hang-early", "did not listen within 1s")],
)
def test_a_program_that_never_listens(mode: str, reason: str, guests: Guests, kvmserver: Kvmserver) -> None:
    start = time.monotonic()
    done = kvmserver.run(
        "-e", "--allow-all", "--max-boot-time", "1s", "run", guests.c("failures"), str(free_port()), mode
    )
    error = done.stderr.decode()
    assert done.returncode == 1, error
    assert reason in error
    assert error.startswith("error: ")
    assert time.monotonic() - start < 20


def test_a_busy_port(guests: Guests, kvmserver: Kvmserver) -> None:
    with socket.socket() as busy:
        busy.bind(("0.0.0.0", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = kvmserver.run("-e", "--allow-all", "run", guests.c("server_epoll"), str(port))
    error = done.stderr.decode()
    assert done.returncode == 1, error
    assert str(port) in error
    assert "in use" in error
    assert b"Program" not in done.stdout


def test_a_program_that_is_missing_or_no_program(kvmserver: Kvmserver, scratch: Path) -> None:
    (scratch / "text").write_text("no program\n")
    (scratch / "text").chmod(0o755)
    assert kvmserver.run("-e", "--allow-all", "run", str(scratch / "missing")).returncode == 127
    assert kvmserver.run("-e", "--allow-all", "run", str(scratch / "text")).returncode == 126


@pytest.mark.parametrize(
    "words",
    [
        ["--no-such-option", "run", "true"],
        ["--threads", "many", "run", "true"],
        ["--max-request-time", "soon", "run", "true"],
        ["--max-request-memory", "12parsecs", "run", "true"],
        ["--allow-read=", "run", "true"],
        ["--volume", "x", "run", "true"],
        ["--config", "/no/such/file.toml", "run", "true"],
        ["run"],
        [],
    ],
)
def test_mistakes_on_the_command_line_are_usage_errors(words: list[str], kvmserver: Kvmserver) -> None:
    done = kvmserver.run(*words)
    assert done.returncode == 2, done.stderr.decode()
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_unknown_keys_of_the_file_are_errors(kvmserver: Kvmserver, scratch: Path) -> None:
    config = write_config(scratch / "kvmserver.toml", 'threds = 2\nmax-request-time = "never"\n')
    done = kvmserver.run("-c", config, "run", "true")
    assert done.returncode == 2
    assert b"threds" in done.stderr
    assert b"max-request-time" in done.stderr, "all mistakes are told at once"


def test_the_command_line_beats_the_file_and_print_config_tells(kvmserver: Kvmserver, scratch: Path) -> None:
    config = write_config(scratch / "kvmserver.toml", 'threads = 3\nmax-request-time = "2s"\n')
    done = kvmserver.run("-t", "5", "--print-config", "run", "true", cwd=scratch)
    assert done.returncode == 0
    lines = {line.split("=")[0].strip(): line for line in done.stdout.decode().splitlines() if "=" in line}
    assert re.search(r"threads = 5 +# command line", lines["threads"])
    assert re.search(r'max-request-time = "2s" +# .*kvmserver\.toml', lines["max-request-time"])
    assert "default" in lines["# hot-pages"]
    assert Path(config).exists()


# ---- stopping ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_zero(number: signal.Signals, guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, threads=2, warmup=2)
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(ask(port, "/slow/1500").body))
    slow.start()
    time.sleep(0.3)
    service.signal(number)
    slow.join()
    assert answers == ["3\n"], "what runs is finished"
    assert service.process.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_an_idle_server_ends_at_once(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, threads=4)
    start = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - start < 3


def test_a_second_signal_ends_at_once(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, "--max-request-time", "60")
    slow = threading.Thread(target=lambda: exchange(port, b"GET /slow/30000 HTTP/1.1\r\nHost: x\r\n\r\n"), daemon=True)
    slow.start()
    time.sleep(0.3)
    service.signal(signal.SIGTERM)
    time.sleep(0.2)
    assert service.process.poll() is None
    start = time.monotonic()
    service.signal(signal.SIGTERM)
    service.process.wait(5)
    assert time.monotonic() - start < 3
    assert service.process.returncode != 0


def test_nothing_outlives_a_supervisor_that_is_killed(guests: Guests, kvmserver: Kvmserver) -> None:
    import psutil

    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, threads=2)
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert family
    service.process.kill()
    service.process.wait()
    wait_until(
        lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 5, "workers live on"
    )


def test_a_worker_that_dies_is_replaced(guests: Guests, kvmserver: Kvmserver) -> None:
    import psutil

    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, warmup=4)
    workers = [p for p in psutil.Process(service.process.pid).children(recursive=True) if not p.children()]
    workers[0].kill()

    def serves() -> bool:
        try:
            return ask(port).body == "5\n"
        except OSError:
            return False

    wait_until(serves, 20, "the service does not come back", pause_s=0.1)
    assert ask_often(port, 50) == {"5": 50}
    kvmserver.stop(service)


def test_statistics_count_requests(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, threads=2, warmup=2)
    before = service.statistics()
    ask_often(port, 100, 2)
    after = service.statistics()
    assert after["requests"] - before["requests"] == 100
    kvmserver.stop(service)
