"""Warm-up requests are well formed, are taken in turn, and only good answers count."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver.warmup import DEFAULT_REQUESTS, WarmupRequest, build, check_request, judge, parse_request, run_warmup

GET = WarmupRequest()


def test_the_default_is_a_closing_get_of_the_root() -> None:
    assert build(DEFAULT_REQUESTS[0]) == b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_body_gets_its_length_and_given_headers_win() -> None:
    request = WarmupRequest("POST", "/render", {"host": "example.org", "X-A": "b"}, "grüße")
    assert build(request) == (
        b"POST /render HTTP/1.1\r\nConnection: close\r\nhost: example.org\r\nX-A: b\r\nContent-Length: 7\r\n\r\n"
        + "grüße".encode()
    )


def test_a_post_without_a_body_says_so() -> None:
    assert b"Content-Length: 0\r\n" in build(WarmupRequest("POST"))


def test_requests_of_the_command_line() -> None:
    assert parse_request("POST /render?x=1") == WarmupRequest("POST", "/render?x=1")
    assert parse_request("OPTIONS *") == WarmupRequest("OPTIONS", "*")
    for text in ("", "GET", "GET / HTTP/1.1", "G@T /", "GET render", "GET /ü"):
        with pytest.raises(ValueError, match=r".+"):
            parse_request(text)


@pytest.mark.parametrize(
    "request_",
    [
        WarmupRequest(path="/a\r\nX: y"),
        WarmupRequest(headers={"A": "b\r\nC: d"}),
        WarmupRequest(headers={"A b": "c"}),
        WarmupRequest(headers={"Content-Length": "3"}),
        WarmupRequest(headers={"transfer-encoding": "chunked"}),
        WarmupRequest(status=199),
        WarmupRequest(status=600),
    ],
)
def test_a_request_that_would_not_be_one_request_is_refused(request_: WarmupRequest) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_request(request_)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        (b"", "was not answered"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "was answered with an incomplete head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "was answered with an incomplete head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "was answered with an incomplete body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "was answered with an incomplete body"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "was answered with status 404"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "was answered with status 500"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "was answered with status 101"),
    ],
)
def test_answers_are_judged(answer: bytes, problem: str) -> None:
    assert judge(GET, answer) == problem


def test_nonsense_is_named_as_such() -> None:
    assert judge(GET, b"hello\r\n\r\n").startswith("was answered with malformed HTTP")


def test_an_expected_status_replaces_the_rule() -> None:
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    assert judge(WarmupRequest(status=404), answer) == ""
    assert judge(WarmupRequest(status=200), answer) == "was answered with status 404, not 200"


def test_the_answer_to_head_has_no_body() -> None:
    assert judge(WarmupRequest("HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_an_exception(answer: bytes) -> None:
    assert isinstance(judge(GET, answer), str)


@given(st.binary(max_size=60))
def test_bytes_behind_a_good_head_never_raise(tail: bytes) -> None:
    judge(GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + tail)


def test_requests_are_taken_in_turn() -> None:
    sent: list[tuple[int, str]] = []
    requests = (WarmupRequest(path="/a"), WarmupRequest(path="/b"))
    run_warmup(5, requests, lambda index, request, data: sent.append((index, request.path)))
    assert sent == [(0, "/a"), (1, "/b"), (2, "/a"), (3, "/b"), (4, "/a")]


def test_what_is_built_is_what_a_parser_reads() -> None:
    class Seen:
        url = b""
        body = b""

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_body(self, body: bytes) -> None:
            self.body += body

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(build(WarmupRequest("PUT", "/x?y", {"A": "b"}, "body")))
    assert (parser.get_method(), seen.url, seen.body) == (b"PUT", b"/x?y", b"body")
