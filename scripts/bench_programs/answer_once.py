"""Answers one request on standard input and output with http.server, for process_per_request."""

import socket
from http.server import BaseHTTPRequestHandler


class Answer(BaseHTTPRequestHandler):
    """One handler, one request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """What counter_http_server.py answers first."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"1\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with socket.socket(fileno=0) as client:
        Answer(client, ("127.0.0.1", 0), None)  # type: ignore[arg-type]
