"""The programs that are measured: plain servers, each with the ways in which it can be started."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmark import dependencies
from benchmark.results import KEPT, NEW, PageFacts
from benchmark.server import DENO_V8_FLAGS
from benchmark.tools import GUESTS, PROGRAMS, TESTS, compile_program, tool

# A rendering has to take this long natively; the page gets as many items as that needs on the machine.
PAGE_US = 750.0
_PAGE_ITEMS_MAX = 5000


@dataclass(frozen=True)
class Program:
    """A server and its baselines, as words in which ``{port}`` is filled in; None where there is no such baseline."""

    name: str
    command: tuple[str, ...]
    warmup: int
    fork: tuple[str, ...] | None = None
    process: tuple[str, ...] | None = None
    workers: tuple[str, ...] | None = None
    # Over which connections it serves as an ordinary process in a way that can be compared.
    native_kinds: tuple[str, ...] = (KEPT, NEW)
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    page: PageFacts | None = None
    # Whether runs in kvmserver have flags of V8 (the README's); ordinary processes are measured with and without.
    v8_flags: bool = False


def _c(directory: Path) -> Program:
    epoll = compile_program(GUESTS / "server_epoll.c", directory)
    fork = compile_program(PROGRAMS / "fork_per_request.c", directory)
    once = compile_program(PROGRAMS / "answer_once.c", directory)
    inetd = _inetd(directory)
    return Program("C hello", (epoll, "{port}"), 100, (fork, "{port}"), (*inetd, once))


def _go(directory: Path) -> Program:
    return Program("Go hello", (dependencies.go_program(directory), "{port}"), 1000)


def _deno(directory: Path) -> Program:
    deno = (tool("deno", "pip install deno"), "run", "--allow-all")
    once = (*_inetd(directory), *deno, str(PROGRAMS / "answer_once.ts"))
    # A process with threads cannot be forked into a working copy, so there is no fork-per-request.
    return Program("Deno hello", (*deno, str(PROGRAMS / "hello.ts"), "{port}"), 1000, process=once, v8_flags=True)


def _node(directory: Path) -> Program:
    node = tool("node", "apt-get install -y nodejs")
    once = (*_inetd(directory), node, str(PROGRAMS / "answer_once.js"))
    return Program("Node hello", (node, str(PROGRAMS / "hello.js"), "{port}"), 1000, process=once)


def _http_server(directory: Path) -> Program:
    server = (sys.executable, str(TESTS / "counter_http_server.py"), "{port}")
    fork = (sys.executable, str(PROGRAMS / "fork_per_request.py"), "{port}")
    once = (*_inetd(directory), sys.executable, str(PROGRAMS / "answer_once.py"))
    # Natively a kept connection has the whole server to itself, and each answer waits for a delayed acknowledgement.
    return Program("CPython http.server", server, 100, fork, once, native_kinds=(NEW,))


def _asgi(directory: Path) -> Program:
    uvicorn = (sys.executable, "-m", "uvicorn", "--port", "{port}", "--no-access-log", "hello_asgi:app")
    gunicorn = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", str(_cpus()))
    workers = (*gunicorn, "--worker-class", "uvicorn_worker.UvicornWorker", "hello_asgi:app")
    path = os.pathsep.join([str(dependencies.python_servers()), str(PROGRAMS / "asgi")])
    return Program("CPython uvicorn", uvicorn, 500, workers=workers, environment={"PYTHONPATH": path})


def _page(directory: Path) -> Program:
    del directory
    deno = (tool("deno", "pip install deno"), "run", "--allow-all", "page.js")
    place = dependencies.page()
    facts = calibrate(lambda items: _measure_page(deno, place, items))
    command = (*deno, "{port}", str(facts.items))
    return Program("React page", command, 1000, directory=place, page=facts, v8_flags=True)


# By name, in the order of the report.
PROGRAM_MAKERS: Mapping[str, Callable[[Path], Program]] = {
    "C hello": _c,
    "Go hello": _go,
    "Deno hello": _deno,
    "Node hello": _node,
    "CPython http.server": _http_server,
    "CPython uvicorn": _asgi,
    "React page": _page,
}


def chosen(text: str) -> list[str]:
    """The names that a text means: those of which it is a word, or else those that contain it."""
    wanted = text.lower()
    words = [name for name in PROGRAM_MAKERS if wanted in name.lower().split()]
    return words or [name for name in PROGRAM_MAKERS if wanted in name.lower()]


def make(name: str, directory: Path) -> Program:
    """Compile or install what a program needs."""
    return PROGRAM_MAKERS[name](directory)


def calibrate(measure: Callable[[int], PageFacts]) -> PageFacts:
    """The page of about PAGE_US, from a measurement of pages with some number of items."""
    items = 100
    for _ in range(4):
        facts = measure(items)
        if 0.85 * PAGE_US <= facts.rendering_us <= 1.15 * PAGE_US:
            break
        items = max(1, min(_PAGE_ITEMS_MAX, round(items * PAGE_US / facts.rendering_us)))
    return facts


def _measure_page(deno: tuple[str, ...], place: Path, items: int) -> PageFacts:
    environment = os.environ | {"DENO_V8_FLAGS": DENO_V8_FLAGS, "NODE_ENV": "production"}
    words = [*deno, "measure", str(items)]
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    return PageFacts(items=items, rendering_us=figures["p50_us"], response_bytes=figures["bytes"])


def _inetd(directory: Path) -> tuple[str, str]:
    return compile_program(PROGRAMS / "process_per_request.c", directory), "{port}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
