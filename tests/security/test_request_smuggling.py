"""Requests that two parsers could read differently: refused, the connection closed, and never a second response.

The payloads are those of the published collections (CL.TE, TE.CL, TE.TE, CL.0, chunk-extension and line-terminator
tricks), each followed by a request that must not be answered.
"""

import socket
import time
from collections.abc import Iterator

import pytest
from harness import PROGRAMS, PYTHON, Kvmserver, Service, free_port
from wire import GET, connect

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def service(installed: Kvmserver) -> Iterator[Service]:
    """A program whose counter is at 2 for every request."""
    port = free_port()
    program = [PYTHON, str(PROGRAMS / "shapes.py"), str(port)]
    started = installed.serve(program, port, threads=2, warmup=1)
    yield started
    installed.stop(started)


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: x", *fields, b"", b""])


def te(value: bytes, *fields: bytes) -> bytes:
    """A body in chunks, if the coding is what it must be."""
    return head(b"Transfer-Encoding: " + value, *fields) + b"0\r\n\r\n"


def body(chunks: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked") + chunks


REFUSED = {
    "CL and TE": head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "TE and CL": head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
    "CL, TE of another kind": head(b"Content-Length: 5", b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "CL, TE without a value": head(b"Content-Length: 5", b"Transfer-Encoding:") + b"0\r\n\r\n",
    "differing CLs": head(b"Content-Length: 0", b"Content-Length: 36"),
    "CL as a list": head(b"Content-Length: 0, 36"),
    "CL as a list of equals": head(b"Content-Length: 36, 36"),
    "CL with a sign": head(b"Content-Length: +0"),
    "CL below zero": head(b"Content-Length: -1"),
    "CL in hexadecimal": head(b"Content-Length: 0x0"),
    "CL with a blank": head(b"Content-Length: 3 6"),
    "CL with an underscore": head(b"Content-Length: 3_6"),
    "CL empty": head(b"Content-Length:"),
    "CL too large": head(b"Content-Length: 18446744073709551617"),
    "CL with a vertical tab": head(b"Content-Length: \x0b0"),
    "CL with a form feed": head(b"Content-Length: \x0c0"),
    "CL in other digits": head(b"Content-Length: \xd9\xa3"),
    "TE twice": te(b"chunked", b"Transfer-Encoding: chunked"),
    "TE twice, differing": te(b"chunked", b"Transfer-Encoding: identity"),
    "TE with another coding behind": te(b"chunked, identity"),
    "TE with another coding before": te(b"gzip, chunked"),
    "TE identity": te(b"identity"),
    "TE with a prefix": te(b"xchunked"),
    "TE with a suffix": te(b"chunkedx"),
    "TE with a comma": te(b",chunked"),
    "TE with quotes": te(b'"chunked"'),
    "TE with a vertical tab": te(b"\x0bchunked"),
    "TE with a parameter": te(b"chunked;a=b"),
    "TE in HTTP/1.0": head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0") + b"0\r\n\r\n",
    "space before the colon": head(b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "tab before the colon": head(b"Content-Length\t: 0"),
    "space before the name": head(b" Transfer-Encoding: chunked"),
    "obs-fold": head(b"X: a", b" Transfer-Encoding: chunked"),
    "obs-fold with a tab": head(b"Transfer-Encoding:", b"\tchunked"),
    "no colon": head(b"Transfer-Encoding chunked"),
    "no name": head(b": chunked"),
    "NUL in a name": head(b"Transfer-Encoding\0: chunked"),
    "NUL in a value": head(b"X: \0"),
    "control byte in a name": head(b"X\x01: a"),
    "non-ASCII name": head(b"Transfer-Encoding\xa0: chunked"),
    "bare LF behind a field": head(b"X: a\nTransfer-Encoding: chunked"),
    "bare CR behind a field": head(b"X: a\rTransfer-Encoding: chunked"),
    "bare LF behind the request line": b"POST / HTTP/1.1\nHost: x\r\n\r\n",
    "bare LF as the end": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\n",
    "CR CR LF": b"POST / HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "bare LFs only": b"GET / HTTP/1.1\nHost: x\n\n",
    "two Hosts": head(b"Host: y"),
    "two equal Hosts": head(b"Host: x"),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "Host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "Host with a blank": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host as a list": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "two blanks in the request line": head(line=b"GET  / HTTP/1.1"),
    "a tab in the request line": head(line=b"GET\t/ HTTP/1.1"),
    "a blank in the target": head(line=b"GET /a b HTTP/1.1"),
    "no version": head(line=b"GET /"),
    "a version of three digits": head(line=b"GET / HTTP/1.10"),
    "a version in lower case": head(line=b"GET / http/1.1"),
    "HTTP/2": head(line=b"GET / HTTP/2.0"),
    "HTTP/0.9 in disguise": head(line=b"GET / HTTP/0.9"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a target that is none": head(line=b"GET smuggled HTTP/1.1"),
    "a target with a user": head(line=b"GET http://a@b/ HTTP/1.1"),
    "an asterisk": head(line=b"GET * HTTP/1.1"),
    "CONNECT": head(line=b"CONNECT x:80 HTTP/1.1"),
    "blank before the request": b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunk size with a prefix": body(b"0x5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size with a sign": body(b"+5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size below zero": body(b"-1\r\n\r\n0\r\n\r\n"),
    "chunk size with a blank before": body(b" 5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size with a blank behind": body(b"5 \r\nabcde\r\n0\r\n\r\n"),
    "chunk size with an underscore": body(b"0_5\r\nabcde\r\n0\r\n\r\n"),
    "chunk size missing": body(b"\r\nabcde\r\n0\r\n\r\n"),
    "chunk size too large": body(b"10000000000000005\r\nabcde\r\n0\r\n\r\n"),
    "chunk size that wraps": body(b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n"),
    "chunk size ended by a bare LF": body(b"5\nabcde\r\n0\r\n\r\n"),
    "chunk size ended by a bare CR": body(b"5\rXabcde\r\n0\r\n\r\n"),
    "chunk longer than its size": body(b"5\r\nabcdef\r\n0\r\n\r\n"),
    "chunk shorter than its size": body(b"5\r\nabc\r\n0\r\n\r\n"),
    "chunk ended by a bare LF": body(b"5\r\nabcde\n0\r\n\r\n"),
    "chunk ended by any two bytes": body(b"5\r\nabcdeXX0\r\n\r\n"),
    "chunk extension without a name": body(b"5;\r\nabcde\r\n0\r\n\r\n"),
    "chunk extension with a bare LF": body(b"5;a\nb\r\nabcde\r\n0\r\n\r\n"),
    "chunk extension with a bare CR": body(b"5;a\rb\r\nabcde\r\n0\r\n\r\n"),
    "chunk extension with a NUL": body(b"5;a=\0\r\nabcde\r\n0\r\n\r\n"),
    "chunk extension with an open quote": body(b'5;a="b\r\nabcde\r\n0\r\n\r\n'),
    "chunk extension too long": body(b"5;" + b"a" * 10_000 + b"\r\nabcde\r\n0\r\n\r\n"),
    "trailer with a blank before the colon": body(b"0\r\nX : a\r\n\r\n"),
    "trailer folded": body(b"0\r\nX: a\r\n b\r\n\r\n"),
    "trailer with a bare LF": body(b"0\r\nX: a\nY: b\r\n\r\n"),
    "trailers too long": body(b"0\r\n" + b"X: a\r\n" * 2000 + b"\r\n"),
    "fields too many": head(*[b"X: a"] * 200),
    "head too long": head(b"X: " + b"a" * 70_000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


def check_refused(payload: bytes, pieces: int, service: Service) -> None:
    """One answer of ours, which is no success, and the end of the connection."""
    with connect(service.port, timeout_s=10) as wire:
        data = payload + SMUGGLED
        try:
            if pieces == 1:
                wire.send(data)
            for at in range(0, len(data), 1 + len(data) // pieces) if pieces > 1 else ():
                wire.send(data[at : at + 1 + len(data) // pieces])
                time.sleep(0.001)
            received = wire.rest()
        except (ConnectionResetError, BrokenPipeError):
            received = wire.data
    assert received.count(b"HTTP/1.1 ") <= 1, received
    assert received == b"" or received.split(b" ")[1] in (b"400", b"431", b"501", b"505"), received
    if pieces == 1:
        assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("pieces", [1, 9])
def test_what_could_be_read_in_two_ways_is_refused(payload: bytes, pieces: int, service: Service) -> None:
    check_refused(payload, pieces, service)


@pytest.mark.parametrize("payload", list(REFUSED.values())[:40:3])
def test_neither_is_it_served_behind_a_good_request(payload: bytes, service: Service) -> None:
    with connect(service.port, timeout_s=10) as wire:
        wire.send(GET + payload + SMUGGLED)
        assert wire.response().body == b"2\n"
        assert wire.response().status in (400, 431, 501, 505)
        assert wire.is_closed()


# What is unusual, and means only one thing: the request and how many requests it is.
FINE = {
    "equal CLs": head(b"Content-Length: 3", b"Content-Length: 3") + b"abc",
    "CL with zeros": head(b"Content-Length: 0003") + b"abc",
    "TE in capitals": head(b"TRANSFER-ENCODING: CHUNKED") + b"3\r\nabc\r\n0\r\n\r\n",
    "TE with blanks around": head(b"Transfer-Encoding: \t chunked \t") + b"3\r\nabc\r\n0\r\n\r\n",
    "chunk extensions": body(b'3;a=b; c="d;\\"e" ;f\r\nabc\r\n0;g\r\n\r\n'),
    "chunk size with zeros": body(b"0000003\r\nabc\r\n000\r\n\r\n"),
    "a body with GET": head(b"Content-Length: 3", line=b"GET / HTTP/1.1") + b"abc",
    "a request as a body": head(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
    "a request as a chunk": body(b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "empty lines before": b"\r\n\r\n" + head(b"Content-Length: 0"),
    "fields that look like others": head(
        b"Content_Length: 30", b"X-Content-Length: 30", b"Transfer-Encodings: chunked"
    ),
    "framing named as an option of the connection": head(b"Content-Length: 3", b"Connection: content-length, host")
    + b"abc",
}


@pytest.mark.parametrize("payload", FINE.values(), ids=FINE)
def test_what_means_only_one_thing_is_one_request(payload: bytes, service: Service) -> None:
    with connect(service.port) as wire:
        wire.send(payload + GET)
        assert wire.response().body == b"2\n"
        assert wire.response().body == b"2\n"
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.is_closed()


def test_the_program_never_sees_two_requests_in_one(service: Service) -> None:
    """What it is given ends where the request ends, whatever is in it."""
    with connect(service.port) as wire:
        wire.send(head(b"Content-Length: 3", line=b"POST /seen HTTP/1.1") + b"abc" + SMUGGLED)
        seen = wire.response().body
        assert seen == b"POST /seen HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        assert wire.response().body == b"2\n"
