"""Servers of real runtimes: CPython, Node, Deno and Go, each frozen after its warm-up."""

import subprocess

import pytest
from harness import PROGRAMS, PYTHON, Guests, Kvmserver, Service, ask_often, find_tool, free_port, repetitions

V8_FLAGS = "--predictable,--max-old-space-size=64,--max-semi-space-size=64"
REQUESTS = 1000  # K22: each runtime, again and again


def check_frozen(service: Service, expected: str, clients: int, requests: int = REQUESTS) -> None:
    number = repetitions(requests)
    assert ask_often(service.port, number, clients) == {expected: number}
    assert service.process.poll() is None


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("program", "wait"), [("http_server", "poll"), ("asyncio", "epoll"), ("wsgi", "poll")])
def test_cpython(program: str, wait: str, threads: int, kvmserver: Kvmserver) -> None:
    port = free_port()
    script = str(PROGRAMS / f"counter_{program}.py")
    service = kvmserver.serve([PYTHON, script, str(port)], port, threads=threads, warmup=20)
    assert service.ready is not None
    assert service.ready.wait == wait
    check_frozen(service, "21", clients=threads)
    if program == "asyncio":
        assert service.ask("/slow").body == "21\n"
        assert service.ask("/thread").body == "21 499500\n"
    kvmserver.stop(service)


def test_cpython_with_a_thread_for_each_connection(kvmserver: Kvmserver) -> None:
    port = free_port()
    script = str(PROGRAMS / "counter_http_server.py")
    service = kvmserver.serve([PYTHON, script, str(port), "threading"], port, threads=2, warmup=10)
    check_frozen(service, "11", clients=2, requests=300)
    kvmserver.stop(service)


@pytest.mark.parametrize("threads", [1, 4])
def test_node(threads: int, kvmserver: Kvmserver) -> None:
    """Node runs in preempted threads: timers, files and the thread pool too."""
    port = free_port()
    program = [find_tool("node"), str(PROGRAMS / "counter.js"), str(port)]
    service = kvmserver.serve(program, port, threads=threads, warmup=20)
    check_frozen(service, "21", clients=threads)
    assert service.ask("/timer").body == "21\n"
    assert service.ask("/file").body == "21 true\n"
    assert service.ask("/hash").body == "21 32\n"
    check_frozen(service, "21", clients=threads, requests=50)
    kvmserver.stop(service)


@pytest.mark.parametrize("threads", [1, 4])
def test_go(threads: int, guests: Guests, kvmserver: Kvmserver) -> None:
    """T50: goroutines, timers and the collector; T47: a heap at a high address, in blocks that are split."""
    port = free_port()
    service = kvmserver.serve([guests.go(), str(port)], port, threads=threads, warmup=20)
    check_frozen(service, "21", clients=threads)
    assert service.ask("/garbage").body == "21 13107200\n"
    assert service.ask("/goroutines").body == "21 1275\n"
    check_frozen(service, "21", clients=threads, requests=50)
    kvmserver.stop(service)


@pytest.mark.parametrize("threads", [1, 4])
def test_deno_as_in_the_readme(threads: int, kvmserver: Kvmserver) -> None:
    """After 1,000 warm-up requests the answer is 1001, and 1001 again, from any number of clients.

    K17, K18: V8 maps its libraries and its snapshot from files, and reads them after forks and resets.
    """
    port = free_port()
    program = ["deno", "run", "--allow-all", str(PROGRAMS / "counter.ts"), str(port)]
    find_tool("deno")
    service = kvmserver.serve(program, port, threads=threads, warmup=1000, environment={"DENO_V8_FLAGS": V8_FLAGS})
    assert service.ready is not None
    assert service.ready.program == "deno"
    assert service.ready.wait == "epoll"
    assert service.ready.vms == threads
    assert service.ready.ephemeral
    assert set(service.ready.values) == {"init", "warmup", "rss"}
    check_frozen(service, "1001", clients=threads)
    kvmserver.stop(service)


def test_deno_starts_in_time(kvmserver: Kvmserver) -> None:
    """To the line ``Program`` without warm-up; the promise is 1.5 s, the bound here only catches what is broken."""
    import time

    port = free_port()
    program = ["deno", "run", "--allow-all", str(PROGRAMS / "counter.ts"), str(port)]
    start = time.monotonic()
    service = kvmserver.serve(program, port, environment={"DENO_V8_FLAGS": V8_FLAGS})
    assert time.monotonic() - start < 10
    assert service.ask().body == "1"
    kvmserver.stop(service)


def milliseconds(output: str) -> float:
    return float(output.split()[0])


def test_luajit_compiles_in_a_guest(kvmserver: Kvmserver) -> None:
    """A traced loop runs at native speed; an interpreter would need ten times as long."""
    words = [find_tool("luajit"), str(PROGRAMS / "speed.lua")]
    native = min(
        milliseconds(subprocess.run(words, capture_output=True, text=True, check=True).stdout) for _ in range(2)
    )
    outputs = [kvmserver.run("--allow-all", "run", *words).stdout.decode() for _ in range(2)]
    assert all(output.split()[1:] == ["129354753", "true"] for output in outputs), outputs
    assert min(milliseconds(output) for output in outputs) < 3 * native + 50


def test_v8_compiles_in_a_guest(kvmserver: Kvmserver) -> None:
    program = [find_tool("deno"), "run", "--allow-all", str(PROGRAMS / "speed.ts")]
    words = [*program, "once"]
    native = min(
        milliseconds(subprocess.run(words, capture_output=True, text=True, check=True).stdout) for _ in range(2)
    )
    once = kvmserver.run("--allow-all", "run", *words)
    assert once.returncode == 0, once.stderr.decode()
    assert milliseconds(once.stdout.decode()) < 3 * native + 50
    port = free_port()
    service = kvmserver.serve([*program, str(port)], port, warmup=3)
    times = [milliseconds(service.ask().body) for _ in range(5)]
    assert min(times) < 3 * native + 50, times
    kvmserver.stop(service)
