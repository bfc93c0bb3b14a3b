"""A server that answers every request with the storage program's next number: python3 request.py PORT."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import kvmserverguest


class Handler(BaseHTTPRequestHandler):
    """Answers with the number, or with 503 and what went wrong."""

    def do_GET(self) -> None:
        """Ask the storage program."""
        try:
            status, body = 200, kvmserverguest.call("count")
        except OSError as error:
            status, body = 503, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if not kvmserverguest.available():
    sys.exit("not inside kvmserver")
HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
