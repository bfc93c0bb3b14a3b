"""The demo's parts that need no VM: the port, the native counter, and the table."""

import asyncio
import signal
import socket
import subprocess

import pytest

from kvmserver import demo, machine
from kvmserver.demo import Answer
from kvmserver.errors import KvmserverError

from .conftest import Command


def test_a_port_that_was_asked_for_must_be_free() -> None:
    port = machine.free_port()
    assert demo.choose_port(port) == port
    assert demo.choose_port(0) > 0
    with socket.create_server(("", port)), pytest.raises(KvmserverError, match=f"port {port} is in use"):
        demo.choose_port(port)


def test_a_busy_default_port_is_replaced_and_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = machine.free_port()
    monkeypatch.setattr(demo, "DEFAULT_PORT", port)
    assert demo.choose_port(None) == port
    with socket.create_server(("", port)):
        chosen = demo.choose_port(None)
    assert chosen != port
    assert capfd.readouterr().out == f"Port {port} is in use; using {chosen} instead.\n"


def test_the_counter_counts_natively() -> None:
    answers = asyncio.run(demo._ask_natively(5))
    assert [answer.text for answer in answers] == ["6", "7", "8"]
    assert all(answer.milliseconds > 0 for answer in answers)


def test_the_table_shows_both_side_by_side() -> None:
    lines = demo.table([Answer("101", 0.5)] * 2, [Answer("101", 0.25), Answer("102", 0.25)])
    assert lines[-2].split() == ["request", "2", "101", "(0.50", "ms)", "102", "(0.25", "ms)"]


def test_a_refusing_server_is_an_error() -> None:
    async def scenario() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server:
            await demo.ask(server.sockets[0].getsockname()[1])

    with pytest.raises(ValueError, match="502 Bad Gateway"):
        asyncio.run(scenario())


def test_the_demo_shows_both_and_serves_on(command: Command) -> None:
    port = machine.free_port()
    process = command.start_unread("demo", "--port", str(port), stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Serving on"):
            break
    text = "".join(lines)
    assert f"kvmserver -e -t 2 --warmup 100 --allow-read --allow-listen=:{port} run python3 -I " in text
    assert "Warming up the guest VM" in text
    assert " vm=2 ephemeral " in text
    # The pretended data plane does not isolate: its counter is cold and counts. The native one was warmed up.
    assert [line.split()[2] for line in lines if line.startswith("request")] == ["1", "2", "3"]
    assert [line.split()[5] for line in lines if line.startswith("request")] == ["101", "102", "103"]
    assert lines[-1].startswith(f"Serving on http://127.0.0.1:{port} until Ctrl-C")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    process.stdout.close()
