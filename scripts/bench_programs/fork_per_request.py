"""Baseline: CPython's http.server with a forked child for every connection: fork_per_request.py PORT."""

import sys
from http.server import BaseHTTPRequestHandler
from socketserver import ForkingMixIn, TCPServer


class Answer(BaseHTTPRequestHandler):
    """The handler of counter_http_server.py, in a child."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Every child is the first."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"1\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ForkingMixIn, TCPServer):
    """One child for each connection."""

    allow_reuse_address = True
    request_queue_size = 128
    max_children = 1000


if __name__ == "__main__":
    Server(("", int(sys.argv[1])), Answer).serve_forever(poll_interval=60)
