"""Kept connections: a fresh VM for every request, whoever the client is and however its requests come."""

import collections
import http.client
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import httpx
import pytest
from harness import PROGRAMS, Guests, Kvmserver, Service, ask, find_tool, free_port, wait_until
from wire import GET, Wire, connect, get, post, within

REQUESTS = 100
REQUEST_TIME_S = 1.0


@pytest.fixture(scope="module")
def service(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """A counter that answers 11, and fails on request."""
    options = ["--max-request-time", f"{REQUEST_TIME_S:g}"]
    with installed.serving([guests.c("failures")], *options, threads=2, warmup=10) as started:
        yield started


def ask_with_http_client(port: int) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    answers = []
    for _ in range(REQUESTS):
        connection.request("GET", "/")
        answers.append(connection.getresponse().read().decode())
    connection.close()
    return answers


def ask_with_httpx(port: int) -> list[str]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
        return [client.get("/").text for _ in range(REQUESTS)]


def ask_with_curl(port: int) -> list[str]:
    words = [find_tool("curl"), "-sS", "--noproxy", "*", "--max-time", "60", f"http://127.0.0.1:{port}/?[1-{REQUESTS}]"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines(keepends=True)


def ask_with_h11(port: int) -> list[str]:
    """A client that objects to whatever RFC 9112 objects to."""
    client = h11.Connection(h11.CLIENT)
    answers = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connected:
        for _ in range(REQUESTS):
            connected.sendall(client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")])) or b"")
            connected.sendall(client.send(h11.EndOfMessage()) or b"")
            body = b""
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(connected.recv(65536))
                elif isinstance(event, h11.Data):
                    body += event.data
            answers.append(body.decode())
            client.start_next_cycle()
    return answers


def ask_raw(port: int) -> list[str]:
    with connect(port) as wire:
        return [wire.ask(GET).body.decode() for _ in range(REQUESTS)]


def ask_like_a_browser(port: int) -> list[str]:
    """All that a browser says with each request, and a cookie that it got elsewhere."""
    fields = [
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "Accept-Language: en-GB,en;q=0.5",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Connection: keep-alive",
        "Cookie: session=" + "0123456789abcdef" * 16,
        "Upgrade-Insecure-Requests: 1",
        "Sec-Fetch-Dest: document",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Site: none",
        "Priority: u=0, i",
        "Cache-Control: max-age=0",
        'If-None-Match: "33a64df5"',
    ]
    with connect(port) as wire:
        return [wire.ask(get(f"/?page={number}", *fields)).body.decode() for number in range(REQUESTS)]


CLIENTS = [ask_with_http_client, ask_with_httpx, ask_with_curl, ask_with_h11, ask_raw, ask_like_a_browser]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_hundred_requests_on_one_connection_see_a_fresh_state(
    client: Callable[[int], list[str]], service: Service
) -> None:
    before = service.statistics()
    assert client(service.port) == ["11\n"] * REQUESTS
    # The last one is counted when its VM is reset.
    wait_until(lambda: service.statistics()["requests"] - before["requests"] == REQUESTS, 5, "all are counted")
    assert service.statistics()["connections"] - before["connections"] == 1


def test_wrk_sees_a_fresh_state_on_its_one_connection(service: Service, tmp_path: Path) -> None:
    before, answers = service.statistics()["connections"], tmp_path / "answers"
    words = [
        find_tool("wrk"),
        "-t1",
        "-c1",
        "-d2s",
        "-s",
        str(PROGRAMS / "collect.lua"),
        f"http://127.0.0.1:{service.port}/",
    ]
    subprocess.run(words, env={"ANSWERS": str(answers)}, capture_output=True, check=True)
    seen = collections.Counter(line for line in answers.read_text().splitlines() if line)
    assert set(seen) == {"200 11"}
    assert seen["200 11"] >= REQUESTS
    # wrk tries the address with a connection that says nothing before it begins.
    assert service.statistics()["connections"] - before <= 2


def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    with connect(service.port) as wire:
        bodies = [b"%d" % number * (number * 37 % 500) for number in range(60)]
        wire.send(b"".join(post("/echo", body) + GET for body in bodies))
        for body in bodies:
            assert wire.response().body == body
            assert wire.response().body == b"11\n"


def test_requests_may_come_byte_by_byte(service: Service) -> None:
    with connect(service.port) as wire:
        for number in range(3):
            for byte in post("/echo", b"a%d" % number) + b"\r\n":
                wire.send(bytes([byte]))
            assert wire.response().body == b"a%d" % number


def test_who_sends_much_at_once_does_not_hold_up_the_others(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, warmup=3)
    with connect(port) as greedy:
        greedy.send(get("/slow/50") * 40)
        greedy.response()
        for _ in range(3):
            with within(0.4):
                assert service.ask().body == "4\n"
        for _ in range(39):
            assert greedy.response().body == b"4\n"
    kvmserver.stop(service)


def test_many_clients_share_few_vms(service: Service) -> None:
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(ask_raw(service.port))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [["11\n"] * REQUESTS] * 20


@pytest.mark.parametrize(
    ("request_bytes", "keeps"),
    [
        (get("/"), True),
        (get("/", "Connection: close"), False),
        (get("/", "Connection: a, CLOSE"), False),
        (get("/", version="1.0"), False),
        (get("/", "Connection: keep-alive", version="1.0"), True),
        (get("/", method="HEAD"), True),
        (b"\r\n\r\n" + get("/"), True),
    ],
)
def test_the_client_decides_whether_the_connection_is_kept(request_bytes: bytes, keeps: bool, service: Service) -> None:
    is_head = b"HEAD" in request_bytes
    with connect(service.port) as wire:
        response = wire.ask(request_bytes, is_head)
        assert (response.status, response.body) == (200, b"" if is_head else b"11\n")
        assert (response.names.get("connection") == "close") is not keeps
        if b"HTTP/1.0" in request_bytes and keeps:
            assert response.names["connection"] == "keep-alive"
        if keeps:
            assert wire.ask(GET).body == b"11\n"
        else:
            assert wire.is_closed()


@pytest.mark.parametrize(("path", "status"), [("/segv", 502), ("/no-answer", 502), ("/nonsense", 502), ("/loop", 504)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_failure_costs_the_client_its_request_but_not_its_connection(
    path: str, status: int, method: str, service: Service
) -> None:
    with connect(service.port) as wire:
        response = wire.ask(get(path, method=method), method == "HEAD")
        assert response.status == status
        assert (response.body == b"") is (method == "HEAD")
        assert wire.ask(GET).body == b"11\n"
        assert wire.ask(get(path, "Connection: close")).names["connection"] == "close"
        assert wire.is_closed()


@pytest.mark.parametrize("path", ["/half-segv", "/half-exit", "/half-loop"])
def test_a_response_that_breaks_off_ends_its_connection(path: str, service: Service) -> None:
    with connect(service.port) as wire:
        wire.send(get(path) + GET)
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n")
        assert wire.rest() == b"half"
    assert service.ask().body == "11\n"


def test_a_client_that_has_ended_its_side_gets_all_its_answers(service: Service) -> None:
    with connect(service.port) as wire:
        wire.send(get("/slow/100") + GET)
        wire.socket.shutdown(socket.SHUT_WR)
        assert [wire.response().body, wire.response().body] == [b"11\n", b"11\n"]
        assert wire.is_closed()


def test_the_vm_is_reset_while_the_client_still_reads(guests: Guests, kvmserver: Kvmserver) -> None:
    """One VM, and a response that lies in our buffer: others are served, and more of them on the same connection."""
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, warmup=3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        wire = Wire(client)
        wire.send(get("/big/10000000") + GET)
        wire.until(b"\r\n\r\n")
        wait_until(lambda: service.statistics()["resets"] >= 1, 5, "the VM is reset")
        for _ in range(50):
            assert service.ask().body == "4\n"
        wire.exactly(10_000_000)
        assert wire.response().body == b"4\n"
    kvmserver.stop(service)


def test_beyond_its_buffer_a_response_waits_for_its_client(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    options = ["--response-buffer", "64KiB", "--write-timeout", "400ms", "--max-request-time", "30s"]
    service = kvmserver.serve([guests.c("failures"), str(port)], port, *options, warmup=3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(get("/big/100000000"))
        # A client that takes something now and then is waited for, one that takes nothing is not.
        for _ in range(30):
            time.sleep(0.05)
            assert client.recv(256 << 10)
        with within(5):
            assert service.ask().body == "4\n"
        time.sleep(1)
        wire = Wire(client)
        with pytest.raises(ConnectionResetError):
            wire.rest()
        assert len(wire.data) < 90_000_000
    kvmserver.stop(service)


def test_a_kept_connection_ends_with_the_server(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, threads=2, warmup=3)
    with connect(port) as idle, connect(port) as busy, connect(port) as silent:
        assert idle.ask(GET).body == b"4\n"
        busy.send(get("/slow/1000"))
        time.sleep(0.3)
        service.signal(signal.SIGTERM)
        with within(0.8):
            assert idle.is_closed()
            assert silent.is_closed()
        response = busy.response()
        assert (response.body, response.names["connection"]) == (b"4\n", "close")
        assert busy.is_closed()
    with within(3):
        assert service.process.wait(10) == 0


def test_without_ephemeral_the_counter_counts_on_kept_connections(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    words = ["-t", "1", "--warmup", "10", "--allow-all", "run", guests.c("failures"), str(port)]
    service = kvmserver.start(*words, port=port).wait_ready()
    with connect(port) as wire:
        assert [wire.ask(GET).body for _ in range(5)] == [b"%d\n" % number for number in range(11, 16)]
        assert wire.ask(get("/no-answer")).status == 502
        wire.send(get("/big/5000000"))
        wire.until(b"\r\n\r\n")
    assert ask(port).body == "16\n", "a client that goes away and an answer that is none cost no state"
    kvmserver.stop(service)
