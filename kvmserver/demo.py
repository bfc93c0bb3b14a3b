"""``kvmserver demo``: a counter that cannot count, beside the same counter run natively."""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmserver import config, machine, supervisor
from kvmserver.errors import KvmserverError
from kvmserver.start_output import write_line

DEFAULT_PORT = 8000
WARMUP_REQUESTS = 100
QUESTIONS = 3
_NATIVE_START_S = 10.0
_ANSWER_S = 10.0

SERVER = Path(__file__).with_name("demo_server.py")


@dataclass(frozen=True)
class Answer:
    """One answer of a counter and the time from connecting to its last byte."""

    text: str
    milliseconds: float


def run(given: Mapping[str, Any], port: int | None) -> int:
    """Serve the demo until a signal and return the exit code. ``given`` are options of the command line."""
    chosen = choose_port(port)
    defaults: dict[str, Any] = {
        "ephemeral": True,
        "threads": ["2"],
        "warmup": [str(WARMUP_REQUESTS)],
        "allow-read": ["/"],
        "allow-listen": [f":{chosen}"],
    }
    options = {name: words for name, words in defaults.items() if not (given.get("allow-all") and "allow" in name)}
    options |= given
    # An empty file instead of the default one: the demo shows the demo, whatever the current directory holds.
    program = config.Given(sys.executable, ("-I", str(SERVER), str(chosen)))
    merged = config.load(options, Path(os.devnull), program)
    words = [
        "kvmserver",
        "-e",
        "-t",
        "2",
        "--warmup",
        str(WARMUP_REQUESTS),
        "--allow-read",
        f"--allow-listen=:{chosen}",
    ]
    write_line(f"$ {shlex.join([*words, 'run', 'python3', '-I', str(SERVER), str(chosen)])}")
    return supervisor.run(merged, lambda: _show(chosen, merged.warmup_count))


def choose_port(port: int | None) -> int:
    """The port to serve on: the one asked for if it is free, else the default or any free one."""
    if port == 0:
        return machine.free_port()
    if machine.is_port_free(DEFAULT_PORT if port is None else port):
        return DEFAULT_PORT if port is None else port
    if port is not None:
        raise KvmserverError(f"port {port} is in use", "choose another with --port, or --port 0 for any free one")
    chosen = machine.free_port()
    write_line(f"Port {DEFAULT_PORT} is in use; using {chosen} instead.")
    return chosen


async def ask(port: int) -> Answer:
    """One request over a connection of its own. Raises OSError, TimeoutError or ValueError."""
    begin_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = await asyncio.wait_for(reader.read(), _ANSWER_S)
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    first_line = head.partition(b"\r\n")[0]
    if first_line.split(b" ")[1:2] != [b"200"]:
        raise ValueError(f"the demo was answered with {first_line!r}")
    return Answer(body.decode("ascii", "replace").strip(), (time.perf_counter() - begin_s) * 1e3)


def table(isolated: list[Answer], native: list[Answer]) -> list[str]:
    """The comparison, line by line."""
    lines = ["", f"{'':12}{'isolated (a fresh fork each)':>32}{'the same program natively':>32}"]
    for number, (ours, theirs) in enumerate(zip(isolated, native, strict=True), 1):
        lines.append(f"request {number:<4}{_cell(ours):>32}{_cell(theirs):>32}")
    return [*lines, ""]


async def _show(port: int, warmup_count: int) -> None:
    isolated = [await ask(port) for _ in range(QUESTIONS)]
    native = await _ask_natively(warmup_count)
    for line in table(isolated, native):
        write_line(line)
    write_line(
        f"Serving on http://127.0.0.1:{port} until Ctrl-C; ask as often as you like: it stays {isolated[0].text}."
    )


async def _ask_natively(warmup_count: int) -> list[Answer]:
    """The same questions to the same program, warmed up alike, run as an ordinary process."""
    port = machine.free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(SERVER), str(port), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        await _wait_for_native(port, process)
        for _ in range(warmup_count):
            await ask(port)
        return [await ask(port) for _ in range(QUESTIONS)]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _wait_for_native(port: int, process: asyncio.subprocess.Process) -> None:
    deadline_s = time.monotonic() + _NATIVE_START_S
    while time.monotonic() < deadline_s and process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return
    raise KvmserverError("the demo's server does not start natively")


def _cell(answer: Answer) -> str:
    return f"{answer.text}  ({answer.milliseconds:.2f} ms)"
