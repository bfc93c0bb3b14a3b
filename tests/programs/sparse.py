"""A server that writes one byte in each 2 MiB of fresh memory and tells what its system says it costs: sparse.py PORT.

``GET /MIB/SECONDS`` maps that much, writes, and keeps it for a while before it answers.
"""

import mmap
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

STEP = 2 << 20


class Handler(BaseHTTPRequestHandler):
    """One byte in each step."""

    def do_GET(self) -> None:
        """Map, write, wait, answer."""
        parts = self.path.strip("/").split("/")
        size, seconds = (int(parts[0]) << 20, float(parts[1])) if len(parts) == 2 else (STEP, 0.0)
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            for offset in range(0, size, STEP):
                memory[offset] = 1
            time.sleep(seconds)
        body = b"written"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
