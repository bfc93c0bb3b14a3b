"""Options for clients: limits and timeouts, waiting for a VM, who the client is, where it is awaited, and how."""

import contextlib
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import (
    PYTHON,
    SHAPES_SERVER,
    Guests,
    Kvmserver,
    Service,
    ask,
    ask_often,
    clean_environment,
    free_port,
    wait_until,
)
from wire import GET, Wire, connect, get, post, within

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.fixture(scope="module")
def strict(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """A counter at 4 with small limits and short timeouts, and one VM."""
    options = ["--header-timeout", "500ms", "--body-timeout", "700ms", "--idle-timeout", "900ms"]
    options += ["--write-timeout", "500ms", "--max-header-size", "2KiB", "--max-body-size", "100KiB"]
    options += ["--queue-time", "600ms", "--max-request-time", "10s", "--server-timing"]
    with installed.serving([guests.c("failures")], *options, warmup=3) as started:
        yield started


def python_service(kvmserver: Kvmserver, *options: str) -> Service:
    port = free_port()
    return kvmserver.serve([*SHAPES_SERVER, str(port)], port, *options)


def lasts(wire: Wire) -> float:
    """How long the connection lasts from now on."""
    start = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        wire.rest()
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("sent", "low_s", "answer"),
    [(b"", 0.4, b""), (b"GET / HT", 0.4, b"408"), (post("/echo", b"")[:-4] + b"\r\nX: a\r\n", 0.4, b"408")],
)
def test_a_head_has_to_arrive_in_time(sent: bytes, low_s: float, answer: bytes, strict: Service) -> None:
    with connect(strict.port) as wire:
        wire.send(sent)
        start = time.monotonic()
        received = wire.rest()
        assert low_s < time.monotonic() - start < 2
        assert received[9:12] == answer
        assert b"Connection: close" in received or not answer


def test_a_head_that_trickles_in_has_no_more_time(strict: Service) -> None:
    with connect(strict.port) as wire, contextlib.suppress(ConnectionError):
        start = time.monotonic()
        for _ in range(40):
            wire.send(b"G" if time.monotonic() - start < 0.1 else b"E")
            time.sleep(0.05)
    assert time.monotonic() - start < 2.5


def test_a_body_has_to_arrive_in_time(strict: Service) -> None:
    with connect(strict.port) as wire:
        wire.send(post("/echo", b"a" * 1000)[:-1])
        start = time.monotonic()
        assert wire.response().status == 408
        assert 0.5 < time.monotonic() - start < 2
        assert wire.is_closed()


def test_an_idle_connection_is_closed_without_a_word(strict: Service) -> None:
    with connect(strict.port) as wire:
        for _ in range(3):
            assert wire.ask(GET).body == b"4\n"
            time.sleep(0.6)
        start = time.monotonic()
        assert wire.is_closed()
        assert time.monotonic() - start < 1.5


def test_a_client_that_takes_nothing_of_its_response_loses_it(strict: Service) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", strict.port))
        client.sendall(get("/big/12000000"))
        with within(2):
            assert strict.ask().body == "4\n"
        time.sleep(1.5)
        wire = Wire(client)
        with pytest.raises(ConnectionResetError):
            wire.rest()
        assert len(wire.data) < 12_000_000


def test_slow_clients_hold_a_limited_amount_of_memory(guests: Guests, kvmserver: Kvmserver) -> None:
    """Each may have its response wait for it, but not all of them; who has waited longest loses."""
    port = free_port()
    options = ["--connection-memory", "8MiB", "--response-buffer", "4MiB", "--max-request-time", "20"]
    service = kvmserver.serve([guests.c("failures"), str(port)], port, *options, warmup=3)
    with contextlib.ExitStack() as stack:
        wires = []
        for _ in range(12):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            client.sendall(get("/big/4000000", "Connection: close"))
            wires.append(Wire(client))
            wires[-1].until(b"\r\n\r\n")
        wait_until(lambda: 0 < service.statistics()["held_bytes"] <= 8 << 20, 10, "little enough is held", 0.1)
        service.wait_log("--connection-memory")
        assert ask_often(port, 20) == {"4": 20}
        with pytest.raises(ConnectionResetError):
            wires[0].rest()
        assert len(wires[-1].rest()) == 4_000_000
    wait_until(lambda: service.statistics()["held_bytes"] == 0, 10, "nothing is held", 0.1)
    kvmserver.stop(service)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/", "X: " + "a" * 1900), 200),
        (get("/", "X: " + "a" * 2048), 431),
        (get("/" + "a" * 2048), 431),
        (post("/echo", b"a" * 60_000), 200),
        (post("/", b"a" * 102_401), 413),
        (get("/", "Content-Length: 99999999999", method="POST"), 413),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"19001\r\n", 413),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"10000\r\n" + b"a" * 65536 + b"\r\n10000\r\n", 413),
    ],
)
def test_requests_have_limits(request_bytes: bytes, status: int, strict: Service) -> None:
    with connect(strict.port) as wire:
        assert wire.ask(request_bytes).status == status
        assert wire.is_closed(0.1) is (status != 200)


def test_slow_clients_hold_no_vm(strict: Service) -> None:
    """Those that do not end their heads, those that do not end their bodies, and those that do not read, and one VM."""
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            wire = stack.enter_context(connect(strict.port))
            wire.send(get("/big/3000000"))
            wire.until(b"\r\n\r\n")
        for number in range(400):
            wire = stack.enter_context(connect(strict.port))
            wire.send([b"GET / HT", post("/echo", b"a" * 50_000)[:-1]][number % 2])
        with within(10):
            assert ask_often(strict.port, 100) == {"4": 100}


def test_who_waits_too_long_for_a_vm_is_told_so(strict: Service) -> None:
    with connect(strict.port) as holder:
        holder.send(get("/slow/2000"))
        time.sleep(0.2)
        start = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: ask(strict.port), range(20)))
        assert 0.4 < time.monotonic() - start < 1.5
        assert {answer.status for answer in answers} == {503}
        assert all(answer.headers["retry-after"] == "1" for answer in answers)
        with connect(strict.port) as kept:
            # A connection outlives it.
            assert kept.ask(get("/", method="HEAD"), is_head=True).status == 503
            assert holder.response().body == b"4\n"
            assert kept.ask(GET).body == b"4\n"
    assert "no VM was free for a request within 600ms" in strict.log


def test_who_waits_less_is_served_in_its_turn(strict: Service) -> None:
    with connect(strict.port) as holder:
        holder.send(get("/slow/300"))
        time.sleep(0.1)
        with ThreadPoolExecutor(10) as pool:
            assert {answer.body for answer in pool.map(lambda _: ask(strict.port), range(10))} == {"4\n"}
        assert holder.response().body == b"4\n"


def test_page_faults_are_those_of_the_request(guests: Guests, kvmserver: Kvmserver, tmp_path: Path) -> None:
    """A page that is written for the first time is one."""
    port = free_port()
    service = kvmserver.serve([guests.c("attack_memory"), str(port), str(tmp_path)], port, "--server-timing")
    found = []
    for pages in (100, 2000):
        counters = service.ask(f"/dirty/{pages}").headers["kvmserver-counters"]
        found.append(int(dict(pair.split("=") for pair in counters.split(", "))["page-faults"]) / pages)
    assert all(0.9 < each < 2 for each in found), found
    kvmserver.stop(service)


def test_what_a_vm_did_is_told_on_request(strict: Service) -> None:
    with connect(strict.port) as wire:
        # There was no reset before the first one.
        wire.ask(get("/slow/30"))
        runs = []
        for _ in range(3):
            names = wire.ask(get("/slow/30")).names
            timing = names["server-timing"]
            match = re.fullmatch(r"queue;dur=([\d.]+), run;dur=([\d.]+), reset-prev;dur=([\d.]+)", timing)
            assert match, timing
            queue_ms, run_ms, reset_ms = map(float, match.groups())
            assert queue_ms < 1000
            assert 30 <= run_ms < 1000
            assert 0 < reset_ms < 1000
            vm, run = names["kvmserver-vm"].split("/")
            assert vm == "0"
            runs.append(int(run))
            counters = dict(pair.split("=") for pair in names["kvmserver-counters"].split(", "))
            own = {"exits", "system-calls", "calls-in-guest", "faults", "page-faults"}
            assert set(counters) == own | {"dirty-pages-prev", "copied-bytes-prev"}
            assert 1 <= int(counters["exits"]) <= 20
            assert 1 <= int(counters["system-calls"]) <= 20
            assert 1 <= int(counters["dirty-pages-prev"]) <= 50
            assert int(counters["copied-bytes-prev"]) % 4096 == 0
            assert 4096 <= int(counters["copied-bytes-prev"]) <= 50 * 4096
        assert runs == [runs[0], runs[0] + 1, runs[0] + 2]


def test_the_program_learns_who_the_client_is(kvmserver: Kvmserver) -> None:
    service = python_service(kvmserver, "--proxy-headers")
    seen = service.ask("/seen").body
    assert "\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1;proto=http\r\n" in seen
    with connect(service.port) as wire:
        fields = ("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "x-forwarded-for: 192.0.2.2")
        seen = wire.ask(get("/seen", *fields)).body.decode()
    assert seen.count("192.0.2.1") == 2
    assert "\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2, 127.0.0.1\r\n" in seen
    assert "\r\nForwarded: for=192.0.2.1, for=127.0.0.1;proto=http\r\n" in seen
    kvmserver.stop(service)


def test_a_load_balancer_says_who_the_client_is(kvmserver: Kvmserver) -> None:
    service = python_service(kvmserver, "--proxy-protocol", "--proxy-headers", "--header-timeout", "1s")
    inet = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.8") + struct.pack("!HH", 1, 2)
    inet6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 1, 2)
    prefaces = {
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n": "192.0.2.7",
        b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n": "2001:db8::7",
        b"PROXY UNKNOWN\r\n": "127.0.0.1",
        SIGNATURE + b"\x21\x11\x00\x0c" + inet: "192.0.2.7",
        SIGNATURE + b"\x21\x21\x00\x24" + inet6: "2001:db8::7",
        SIGNATURE + b"\x20\x00\x00\x00": "127.0.0.1",
    }
    for preface, address in prefaces.items():
        for pieces in ([preface + get("/seen")], [preface[:5], preface[5:], get("/seen")]):
            with connect(service.port) as wire:
                for piece in pieces:
                    wire.send(piece)
                    time.sleep(0.01)
                seen = wire.response().body
                assert b"\r\nX-Forwarded-For: %s\r\n" % address.encode() in seen
                # Once for a connection, not for each request.
                assert wire.ask(get("/seen")).body == seen
    for nonsense in (
        get("/"),
        b"PROXY TCP4 a b c d\r\n" + get("/"),
        SIGNATURE + b"\x31\x11\x00\x00" + get("/"),
        b"PROXY",
    ):
        with connect(service.port) as wire:
            wire.send(nonsense)
            with within(3), contextlib.suppress(ConnectionResetError):
                assert wire.rest() == b""
    kvmserver.stop(service)


def test_clients_are_awaited_elsewhere(guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    """Two TCP addresses and a path; where the program itself listens nobody answers."""
    own, first, second, path = free_port(), free_port(), free_port(), scratch / "socket"
    listen = ["--listen", f"tcp:127.0.0.1:{first}", "--listen", f"tcp:localhost:{second}", "--listen", f"unix:{path}"]
    service = kvmserver.serve([guests.c("failures"), str(own)], own, *listen, threads=2, warmup=3)
    for port in (first, second):
        assert ask_often(port, 20) == {"4": 20}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        wire = Wire(client)
        assert [wire.ask(GET).body for _ in range(10)] == [b"4\n"] * 10
    with pytest.raises(ConnectionRefusedError):
        ask(own)
    kvmserver.stop(service)
    assert not path.exists()


def test_a_busy_address_is_told_before_anything_is_started(guests: Guests, kvmserver: Kvmserver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = f"tcp:127.0.0.1:{other.getsockname()[1]}"
        done = kvmserver.run("-e", "--allow-all", "--listen", busy, "run", guests.c("failures"), str(free_port()))
    assert done.returncode == 1
    assert f"cannot listen on {busy}: address already in use" in done.stderr.decode()
    assert done.stdout == b""


# What systemd does: the socket is descriptor 3, and the variables name the process that is started.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[2]})
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize(("count", "words"), [("1", []), ("0", ["--listen", "fd:3"])])
def test_an_inherited_socket_and_systemds_activation(
    count: str, words: list[str], guests: Guests, kvmserver: Kvmserver
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as inherited:
        port, own = inherited.getsockname()[1], free_port()
        command = [kvmserver.script, "-e", "--allow-all", *words, "run", guests.c("failures"), str(own)]
        process = subprocess.Popen(
            [PYTHON, "-c", ACTIVATE, str(inherited.fileno()), count, *command],
            pass_fds=(inherited.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
        try:
            # The socket listens already: who comes early waits.
            assert ask(port).body == "1\n"
            with pytest.raises(ConnectionRefusedError):
                ask(own)
        finally:
            process.terminate()
            _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log


def test_other_protocols_have_a_vm_for_each_connection(kvmserver: Kvmserver, scratch: Path) -> None:
    program = scratch / "lines.py"
    program.write_text(
        "import socket, sys\n"
        "count = 0\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True:\n"
        "    client, _ = listener.accept()\n"
        "    with client, client.makefile('rwb', buffering=0) as lines:\n"
        "        lines.write(b'220 ready\\n')\n"
        "        for line in lines:\n"
        "            count += 1\n"
        "            lines.write(b'%d %s' % (count, line))\n"
        "            if line == b'quit\\n':\n"
        "                break\n"
        "            if line == b'die\\n':\n"
        "                sys.exit(3)\n"
    )
    port = free_port()
    service = kvmserver.serve([PYTHON, str(program), str(port)], port, "--protocol", "tcp", "--max-request-time", "2s")
    for end in (b"quit\n", b""):
        for _ in range(3):
            with connect(port) as wire:
                # The server speaks first.
                assert wire.until(b"\n") == b"220 ready\n"
                for number in range(1, 6):
                    wire.send(b"GET / HTTP/1.1\r\n")
                    assert wire.until(b"\n") == b"%d GET / HTTP/1.1\r\n" % number
                wire.send(end)
                if not end:
                    wire.socket.shutdown(socket.SHUT_WR)
                assert wire.rest() == (b"6 quit\n" if end else b"")
    with connect(port) as wire:
        wire.send(b"die\n")
        assert wire.until(b"1 die\n").startswith(b"220")
        assert lasts(wire) < 1
    with connect(port) as wire:
        wire.until(b"\n")
        assert 1.5 < lasts(wire) < 4, "a connection holds its VM for a limited time"
    with connect(port) as wire:
        wire.send(b"a\n" * 1000)
        assert wire.until(b"1000 a\n").count(b"\n") == 1001
    kvmserver.stop(service)


def test_a_thousand_idle_connections_leave_room(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, threads=2, warmup=3)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(connect(port)) for _ in range(1000)]
        for wire in wires:
            assert wire.ask(GET).body == b"4\n"
        assert ask_often(port, 200, 2) == {"4": 200}
        threads = [threading.Thread(target=wire.send, args=(GET,)) for wire in wires[::10]]
        for thread in threads:
            thread.start()
        for wire in wires[::10]:
            assert wire.response().body == b"4\n"
        for thread in threads:
            thread.join()
    kvmserver.stop(service)


def test_environment_of_the_activation_is_not_passed_on(kvmserver: Kvmserver) -> None:
    variables = {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())}
    done = kvmserver.run("--allow-all", "run", "/usr/bin/env", environment=variables)
    assert done.returncode == 0
    assert b"LISTEN_" not in done.stdout
