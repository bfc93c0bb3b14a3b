"""What a program writes, to the byte, and what its client gets: every way to frame a response."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, SHAPES_SERVER, Kvmserver, Service
from wire import GET, CutError, connect, get, post

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def service(installed: Kvmserver) -> Iterator[Service]:
    """A program that answers what it is told to; its counter is at 2 for every request."""
    with installed.serving(SHAPES_SERVER, "--max-request-time", "2s", threads=2, warmup=1) as started:
        yield started


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\nX-Sum: 7\r\n\r\n"


# What the program writes, how, and the body that the client gets.
SHAPES = [
    (OK + b"Content-Length: 5\r\n\r\nhello", "", b"hello"),
    (OK + b"Content-Length: 5\r\n\r\nhello", "then=hold", b"hello"),
    (OK + b"Content-Length: 5\r\n\r\nhello", "then=exit", b"hello"),
    (OK + b"Content-Length: 5\r\n\r\nhello and more", "", b"hello"),
    (OK + b"Content-Length: 0\r\n\r\n", "", b""),
    (OK + b"\r\nhello", "", b"hello"),
    (OK + b"\r\nhello", "then=shut", b"hello"),
    (OK + b"\r\n", "", b""),
    (OK + b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\nhello", "", b"hello"),
    (b"HTTP/1.0 200 OK\r\n\r\nhello", "", b"hello"),
    (b"HTTP/1.0 200 OK\nContent-Length: 5\n\nhello", "", b"hello"),
    (chunked(b"hel", b"lo"), "", b"hello"),
    (chunked(b"hel", b"lo"), "then=hold", b"hello"),
    (chunked(), "", b""),
    (OK + b"Content-Length: 300000\r\n\r\n" + b"a" * 300_000, "", b"a" * 300_000),
    (OK + b"\r\n" + b"a" * 300_000, "", b"a" * 300_000),
    (chunked(b"a" * 100_000, b"a" * 200_000), "", b"a" * 300_000),
]


@pytest.mark.parametrize("how", ["", "pieces=1&pause=1", "pieces=7"])
@pytest.mark.parametrize(("written", "then", "body"), SHAPES)
def test_every_framing_becomes_one_that_keeps_the_connection(
    written: bytes, then: str, how: str, body: bytes, service: Service
) -> None:
    if len(written) > 1000 and how:
        how = "pieces=10000"
    with connect(service.port) as wire:
        response = wire.ask(post(f"/raw?{then}&{how}", written))
        assert (response.status, response.body) == (200, body)
        assert not {"connection", "keep-alive"} & set(response.names)
        assert ("content-length" in response.names) is not ("transfer-encoding" in response.names)
        assert response.trailers == ("X-Sum: 7\r\n" if b"X-Sum" in written else "")
        assert wire.ask(GET).body == b"2\n"


@pytest.mark.parametrize(("written", "then", "body"), SHAPES)
def test_old_clients_get_what_they_understand(written: bytes, then: str, body: bytes, service: Service) -> None:
    with connect(service.port) as wire:
        response = wire.ask(post(f"/raw?{then}", written, "Connection: keep-alive", version="1.0"))
        assert (response.status, response.body) == (200, body)
        assert "transfer-encoding" not in response.names
        has_length = "content-length" in response.names
        assert response.names["connection"] == ("keep-alive" if has_length else "close")
        if has_length:
            assert wire.ask(GET).body == b"2\n"
        else:
            assert wire.is_closed()


@pytest.mark.parametrize(
    "written",
    [
        OK + b"Content-Length: 100\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("how", ["", "then=exit", "then=hold", "pieces=50&pause=50"])
def test_a_response_that_breaks_off_never_looks_complete(
    written: bytes, version: str, how: str, service: Service
) -> None:
    with connect(service.port) as wire:
        wire.send(post(f"/raw?{how}", written, version=version) + GET)
        with pytest.raises((CutError, ConnectionResetError)):
            wire.response()
    assert service.ask().body == "2\n"


def test_a_response_without_an_end_is_no_response_when_its_program_dies(service: Service) -> None:
    for version in ("1.0", "1.1"):
        with connect(service.port) as wire:
            wire.send(post("/raw?then=exit&pause=50", OK + b"\r\nhalf", version=version))
            with pytest.raises((CutError, ConnectionResetError)):
                wire.response()


@pytest.mark.parametrize(
    "written",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        OK + b"Content-Length: x\r\n\r\na",
        OK + b"Transfer-Encoding: gzip\r\n\r\na",
        OK + b"Content-Length : 1\r\n\r\na",
        OK + b"X: a\r\n folded\r\n\r\n",
        OK + b"X: a\rSet-Cookie: b\r\n\r\n",
        OK + b"X: a\0\r\n\r\n",
        OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_response_is_a_502_on_a_kept_connection(written: bytes, service: Service) -> None:
    with connect(service.port) as wire:
        assert wire.ask(post("/raw", written)).status == 502
        assert wire.ask(GET).body == b"2\n"


def test_responses_without_a_body_have_none(service: Service) -> None:
    with connect(service.port) as wire:
        for status in (b"204 No Content", b"304 Not Modified"):
            written = b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\nETag: a\r\n\r\nhello"
            response = wire.ask(post("/raw", written))
            assert (response.status, response.names["etag"]) == (int(status[:3]), "a")
            assert ("content-length" in response.names) is (response.status == 304)
        written = OK + b"Content-Length: 5\r\n\r\nhello"
        head = post("/raw", written).replace(b"POST", b"HEAD", 1)
        assert wire.ask(head, is_head=True).names["content-length"] == "5"
        assert wire.ask(GET).body == b"2\n"


def test_interim_responses_are_passed_on(service: Service) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with connect(service.port) as wire:
        first = wire.ask(post("/raw", interim + OK + b"Content-Length: 1\r\n\r\na"))
        assert (first.status, first.names) == (103, {"link": "</a>"})
        assert wire.response().body == b"a"
        wire.send(post("/raw", interim + OK + b"Content-Length: 1\r\n\r\na", version="1.0"))
        assert wire.response().status == 200


def test_the_program_is_given_one_canonical_request(service: Service) -> None:
    with connect(service.port) as wire:
        seen = wire.ask(
            get("http://site:80/seen?a", "X-A:  b ", "Connection: keep-alive, x-b", "X-B: c", "TE: trailers")
        )
        assert seen.body == b"GET /seen?a HTTP/1.1\r\nHost: site:80\r\nX-A: b\r\nConnection: close\r\n\r\n"
        chunks = b"2;a=b\r\nab\r\n001\r\nc\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\n\r\n"
        seen = wire.ask(get("/seen", "Transfer-Encoding: chunked", method="POST") + chunks)
        head = b"POST /seen HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        assert seen.body == head + b"2\r\nab\r\n1\r\nc\r\n0\r\nX-T: 1\r\n\r\n"
        assert wire.ask(GET).body == b"2\n"


def test_a_client_that_waits_for_100_gets_it(service: Service) -> None:
    with connect(service.port) as wire:
        for _ in range(2):
            assert wire.ask(get("/seen", "Expect: 100-continue", "Content-Length: 3", method="POST")).status == 100
            wire.send(b"abc")
            seen = wire.response().body
            assert seen.endswith(b"\r\n\r\nabc")
            assert b"xpect" not in seen


def test_shapes_are_plain_http_natively() -> None:
    """The program of these tests is an ordinary one: it has no part in the framing."""
    assert "kvmserver" not in Path(PROGRAMS / "shapes.py").read_text()
