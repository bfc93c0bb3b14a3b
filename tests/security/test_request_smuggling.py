"""Requests that two parsers could read differently: refused, the connection closed, and never a second response.

Each payload is followed by a request that must not be answered.
"""

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import SHAPES_SERVER, Kvmserver, Service
from wire import GET, connect

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def service(installed: Kvmserver) -> Iterator[Service]:
    """A program whose counter is at 2 for every request."""
    with installed.serving(SHAPES_SERVER, threads=2, warmup=1) as started:
        yield started


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: x", *fields, b"", b""])


def te(value: bytes, *fields: bytes) -> bytes:
    """A body in chunks, if the coding is what it must be."""
    return head(b"Transfer-Encoding: " + value, *fields) + b"0\r\n\r\n"


def body(chunks: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked") + chunks


@dataclass(frozen=True)
class Refused:
    """A payload, the status it gets, and the source it stands for."""

    status: int
    source: str
    payload: bytes


# Sources: the rule that each breaks, the name that published research has for it (CL.TE, TE.CL, TE.TE, CL.CL: which of
# two lengths the first server takes, and which the second; "desync 2019" is James Kettle's HTTP Desync Attacks, and
# "Watchfire 2005" the paper by Linhart, Klein, Heled and Orrin), and servers that took it: Twisted CVE-2020-10108,
# CVE-2020-10109 and CVE-2022-24801, waitress CVE-2019-16785, CVE-2019-16789 and CVE-2022-24761, HAProxy CVE-2019-18277,
# CVE-2023-25725 and CVE-2023-40225, Go CVE-2019-16276 and CVE-2025-22871, llhttp CVE-2021-22959 and CVE-2022-32215, h11
# CVE-2025-43859.
REFUSED = {
    "CL and TE": Refused(
        400,
        "RFC 9112 6.1, CL.TE, CVE-2020-10109",
        head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    ),
    "TE and CL": Refused(
        400,
        "RFC 9112 6.1, TE.CL, CVE-2020-10109",
        head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
    ),
    "CL, TE of another kind": Refused(
        400,
        "RFC 9112 6.3, TE.TE (desync 2019)",
        head(b"Content-Length: 5", b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    ),
    "CL, TE without a value": Refused(
        400, "RFC 9112 6.3, TE.TE (desync 2019)", head(b"Content-Length: 5", b"Transfer-Encoding:") + b"0\r\n\r\n"
    ),
    "differing CLs": Refused(
        400, "RFC 9112 6.3, CL.CL (Watchfire 2005), CVE-2020-10108", head(b"Content-Length: 0", b"Content-Length: 36")
    ),
    "CL as a list": Refused(400, "RFC 9112 6.3", head(b"Content-Length: 0, 36")),
    "CL as a list of equals": Refused(400, "RFC 9112 6.3", head(b"Content-Length: 36, 36")),
    "CL with a sign": Refused(400, "RFC 9110 8.6, CVE-2022-24801, CVE-2022-24761", head(b"Content-Length: +0")),
    "CL below zero": Refused(400, "RFC 9110 8.6, CVE-2022-24801", head(b"Content-Length: -1")),
    "CL in hexadecimal": Refused(400, "RFC 9110 8.6", head(b"Content-Length: 0x0")),
    "CL with a blank": Refused(400, "RFC 9110 8.6", head(b"Content-Length: 3 6")),
    "CL with an underscore": Refused(400, "RFC 9110 8.6", head(b"Content-Length: 3_6")),
    "CL empty": Refused(400, "RFC 9110 8.6, CVE-2023-40225", head(b"Content-Length:")),
    "CL too large": Refused(400, "RFC 9110 8.6", head(b"Content-Length: 18446744073709551617")),
    "CL with a vertical tab": Refused(400, "RFC 9110 5.5, CVE-2022-24801", head(b"Content-Length: \x0b0")),
    "CL with a form feed": Refused(400, "RFC 9110 5.5, CVE-2022-24801", head(b"Content-Length: \x0c0")),
    "CL in other digits": Refused(400, "RFC 9110 8.6", head(b"Content-Length: \xd9\xa3")),
    "TE twice": Refused(501, "RFC 9112 6.1, TE.TE (desync 2019)", te(b"chunked", b"Transfer-Encoding: chunked")),
    "TE twice, differing": Refused(
        501, "RFC 9112 6.1, TE.TE (desync 2019)", te(b"chunked", b"Transfer-Encoding: identity")
    ),
    "TE with another coding behind": Refused(501, "RFC 9112 6.3", te(b"chunked, identity")),
    "TE with another coding before": Refused(501, "RFC 9112 6.1", te(b"gzip, chunked")),
    "TE identity": Refused(501, "RFC 9112 6.3", te(b"identity")),
    "TE with a prefix": Refused(501, "RFC 9112 6.3, TE.TE (desync 2019)", te(b"xchunked")),
    "TE with a suffix": Refused(501, "RFC 9112 6.3, TE.TE (desync 2019)", te(b"chunkedx")),
    "TE with a comma": Refused(501, "RFC 9110 5.6.1", te(b",chunked")),
    "TE with quotes": Refused(501, "RFC 9112 7, TE.TE", te(b'"chunked"')),
    "TE with a vertical tab": Refused(400, "RFC 9110 5.5, CVE-2019-18277, CVE-2019-16789", te(b"\x0bchunked")),
    "TE with a parameter": Refused(501, "RFC 9112 7.1", te(b"chunked;a=b")),
    "TE in HTTP/1.0": Refused(
        400, "RFC 9112 6.1", head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0") + b"0\r\n\r\n"
    ),
    "space before the colon": Refused(
        400,
        "RFC 9112 5.1, TE.TE (desync 2019), CVE-2019-16276, CVE-2021-22959",
        head(b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
    ),
    "tab before the colon": Refused(400, "RFC 9112 5.1", head(b"Content-Length\t: 0")),
    "space before the name": Refused(400, "RFC 9112 2.2, TE.TE (desync 2019)", head(b" Transfer-Encoding: chunked")),
    "obs-fold": Refused(400, "RFC 9112 5.2", head(b"X: a", b" Transfer-Encoding: chunked")),
    "obs-fold with a tab": Refused(400, "RFC 9112 5.2, CVE-2022-32215", head(b"Transfer-Encoding:", b"\tchunked")),
    "no colon": Refused(400, "RFC 9112 5", head(b"Transfer-Encoding chunked")),
    "no name": Refused(400, "RFC 9112 5, CVE-2023-25725", head(b": chunked")),
    "NUL in a name": Refused(400, "RFC 9110 5.1", head(b"Transfer-Encoding\0: chunked")),
    "NUL in a value": Refused(400, "RFC 9110 5.5", head(b"X: \0")),
    "control byte in a name": Refused(400, "RFC 9110 5.1", head(b"X\x01: a")),
    "non-ASCII name": Refused(400, "RFC 9110 5.1", head(b"Transfer-Encoding\xa0: chunked")),
    "bare LF behind a field": Refused(
        400, "RFC 9112 2.2, TE.TE (desync 2019), CVE-2019-16785", head(b"X: a\nTransfer-Encoding: chunked")
    ),
    "bare CR behind a field": Refused(400, "RFC 9112 2.2", head(b"X: a\rTransfer-Encoding: chunked")),
    "bare LF behind the request line": Refused(
        400, "RFC 9112 2.2, CVE-2019-16785", b"POST / HTTP/1.1\nHost: x\r\n\r\n"
    ),
    "bare LF as the end": Refused(
        400, "RFC 9112 2.2, CVE-2019-16785", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\n"
    ),
    "CR CR LF": Refused(400, "RFC 9112 2.2", b"POST / HTTP/1.1\r\nHost: x\r\r\n\r\n"),
    "bare LFs only": Refused(400, "RFC 9112 2.2, CVE-2019-16785", b"GET / HTTP/1.1\nHost: x\n\n"),
    "two Hosts": Refused(400, "RFC 9112 3.2", head(b"Host: y")),
    "two equal Hosts": Refused(400, "RFC 9112 3.2", head(b"Host: x")),
    "no Host": Refused(400, "RFC 9112 3.2", b"GET / HTTP/1.1\r\n\r\n"),
    "Host with a user": Refused(400, "RFC 9110 7.2", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "Host with a blank": Refused(400, "RFC 9110 7.2", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "Host as a list": Refused(400, "RFC 9110 7.2", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "Host with a path": Refused(400, "RFC 9110 7.2", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "two blanks in the request line": Refused(400, "RFC 9112 3", head(line=b"GET  / HTTP/1.1")),
    "a tab in the request line": Refused(400, "RFC 9112 3", head(line=b"GET\t/ HTTP/1.1")),
    "a blank in the target": Refused(400, "RFC 9112 3.2", head(line=b"GET /a b HTTP/1.1")),
    "no version": Refused(400, "RFC 9112 3", head(line=b"GET /")),
    "a version of three digits": Refused(400, "RFC 9112 2.3", head(line=b"GET / HTTP/1.10")),
    "a version in lower case": Refused(505, "RFC 9112 2.3", head(line=b"GET / http/1.1")),
    "HTTP/2": Refused(505, "RFC 9112 2.3", head(line=b"GET / HTTP/2.0")),
    "HTTP/0.9 in disguise": Refused(505, "RFC 9112 2.3", head(line=b"GET / HTTP/0.9")),
    "the preface of HTTP/2": Refused(505, "RFC 9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a target that is none": Refused(400, "RFC 9112 3.2", head(line=b"GET smuggled HTTP/1.1")),
    "a target with a user": Refused(400, "RFC 9110 4.2.4", head(line=b"GET http://a@b/ HTTP/1.1")),
    "an asterisk": Refused(400, "RFC 9112 3.2.4", head(line=b"GET * HTTP/1.1")),
    "CONNECT": Refused(501, "RFC 9112 3.2.3", head(line=b"CONNECT x:80 HTTP/1.1")),
    "blank before the request": Refused(400, "RFC 9112 2.2", b" GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "chunk size with a prefix": Refused(
        400, "RFC 9112 7.1, CVE-2022-24801, CVE-2022-24761", body(b"0x5\r\nabcde\r\n0\r\n\r\n")
    ),
    "chunk size with a sign": Refused(400, "RFC 9112 7.1, CVE-2022-24761", body(b"+5\r\nabcde\r\n0\r\n\r\n")),
    "chunk size below zero": Refused(400, "RFC 9112 7.1", body(b"-1\r\n\r\n0\r\n\r\n")),
    "chunk size with a blank before": Refused(400, "RFC 9112 7.1", body(b" 5\r\nabcde\r\n0\r\n\r\n")),
    "chunk size with a blank behind": Refused(400, "RFC 9112 7.1", body(b"5 \r\nabcde\r\n0\r\n\r\n")),
    "chunk size with an underscore": Refused(400, "RFC 9112 7.1", body(b"0_5\r\nabcde\r\n0\r\n\r\n")),
    "chunk size missing": Refused(400, "RFC 9112 7.1", body(b"\r\nabcde\r\n0\r\n\r\n")),
    "chunk size too large": Refused(400, "RFC 9112 7.1", body(b"10000000000000005\r\nabcde\r\n0\r\n\r\n")),
    "chunk size that wraps": Refused(400, "RFC 9112 7.1", body(b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n")),
    "chunk size ended by a bare LF": Refused(400, "RFC 9112 7.1, CVE-2025-22871", body(b"5\nabcde\r\n0\r\n\r\n")),
    "chunk size ended by a bare CR": Refused(400, "RFC 9112 7.1", body(b"5\rXabcde\r\n0\r\n\r\n")),
    "chunk longer than its size": Refused(400, "RFC 9112 7.1", body(b"5\r\nabcdef\r\n0\r\n\r\n")),
    "chunk shorter than its size": Refused(400, "RFC 9112 7.1", body(b"5\r\nabc\r\n0\r\n\r\n")),
    "chunk ended by a bare LF": Refused(400, "RFC 9112 7.1", body(b"5\r\nabcde\n0\r\n\r\n")),
    "chunk ended by any two bytes": Refused(400, "RFC 9112 7.1, CVE-2025-43859", body(b"5\r\nabcdeXX0\r\n\r\n")),
    "chunk extension without a name": Refused(400, "RFC 9112 7.1.1", body(b"5;\r\nabcde\r\n0\r\n\r\n")),
    "chunk extension with a bare LF": Refused(
        400, "RFC 9112 7.1.1, CVE-2022-24801, CVE-2025-22871", body(b"5;a\nb\r\nabcde\r\n0\r\n\r\n")
    ),
    "chunk extension with a bare CR": Refused(400, "RFC 9112 7.1.1", body(b"5;a\rb\r\nabcde\r\n0\r\n\r\n")),
    "chunk extension with a NUL": Refused(400, "RFC 9112 7.1.1, CVE-2022-24761", body(b"5;a=\0\r\nabcde\r\n0\r\n\r\n")),
    "chunk extension with an open quote": Refused(400, "RFC 9112 7.1.1", body(b'5;a="b\r\nabcde\r\n0\r\n\r\n')),
    "chunk extension too long": Refused(400, "RFC 9112 7.1.1", body(b"5;" + b"a" * 10_000 + b"\r\nabcde\r\n0\r\n\r\n")),
    "trailer with a blank before the colon": Refused(400, "RFC 9112 5.1", body(b"0\r\nX : a\r\n\r\n")),
    "trailer folded": Refused(400, "RFC 9112 5.2", body(b"0\r\nX: a\r\n b\r\n\r\n")),
    "trailer with a bare LF": Refused(400, "RFC 9112 2.2", body(b"0\r\nX: a\nY: b\r\n\r\n")),
    "trailers too long": Refused(400, "RFC 9110 5.4", body(b"0\r\n" + b"X: a\r\n" * 2000 + b"\r\n")),
    "fields too many": Refused(431, "RFC 9110 5.4", head(*[b"X: a"] * 200)),
    "head too long": Refused(431, "RFC 9110 5.4", head(b"X: " + b"a" * 70_000)),
    "TLS": Refused(400, "RFC 8446 5.1", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
}


def check_refused(case: Refused, pieces: int, service: Service) -> None:
    """One answer of ours, with the status of the case, and the end of the connection."""
    is_reset = False
    with connect(service.port, timeout_s=10) as wire:
        data = case.payload + SMUGGLED
        try:
            if pieces == 1:
                wire.send(data)
            for at in range(0, len(data), 1 + len(data) // pieces) if pieces > 1 else ():
                wire.send(data[at : at + 1 + len(data) // pieces])
                time.sleep(0.001)
            received = wire.rest()
        except (ConnectionResetError, BrokenPipeError):
            received, is_reset = wire.data, True
    if is_reset and pieces > 1 and not received:
        # What was sent behind the refusal met a closed socket: its reset may take the answer along.
        return
    assert received.startswith(b"HTTP/1.1 %d " % case.status), received
    assert received.count(b"HTTP/1.1 ") == 1, received
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("pieces", [1, 9])
def test_what_could_be_read_in_two_ways_is_refused(case: Refused, pieces: int, service: Service) -> None:
    check_refused(case, pieces, service)


@pytest.mark.parametrize("case", list(REFUSED.values())[:40:3])
def test_neither_is_it_served_behind_a_good_request(case: Refused, service: Service) -> None:
    with connect(service.port, timeout_s=10) as wire:
        wire.send(GET + case.payload + SMUGGLED)
        assert wire.response().body == b"2\n"
        assert wire.response().status == case.status
        assert wire.is_closed()


def test_every_payload_names_its_source() -> None:
    one = r"RFC \d{4} [\d.]+|(?:CL|TE)\.(?:CL|TE)(?: \(desync 2019\)| \(Watchfire 2005\))?|CVE-\d{4}-\d+"
    for name, case in REFUSED.items():
        assert re.fullmatch(rf"RFC \d{{4}} [\d.]+(?:, (?:{one}))*", case.source), name


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
