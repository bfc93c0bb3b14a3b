"""The demo's parts that need no VM: the port, the native counter, and the table."""

import asyncio
import socket

import pytest

from kvmserver import demo, machine
from kvmserver.demo import Answer
from kvmserver.errors import KvmserverError


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
