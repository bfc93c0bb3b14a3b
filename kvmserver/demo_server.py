"""The counter that ``kvmserver demo`` serves: an ordinary CPython program that knows nothing of kvmserver.

Usage: ``python3 demo_server.py PORT``. Every answer is the number of requests this process has seen.
"""

import sys
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer

count = 0


class Counter(BaseHTTPRequestHandler):
    """Answers every GET with the next number."""

    def do_GET(self) -> None:
        """Count, and say so."""
        global count
        count += 1
        body = f"{count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the demo's own output is the point."""


class Server(TCPServer):
    """TCPServer instead of HTTPServer, which looks its own host name up in the DNS."""

    allow_reuse_address = True


if __name__ == "__main__":
    Server(("", int(sys.argv[1])), Counter).serve_forever()
