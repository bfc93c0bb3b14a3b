"""slowhttptest with a thousand connections, in each of its modes, beside wrk: what it costs others, and VMs held.

An attacker computes elsewhere: slowhttptest, which does so all the time in some modes, runs at the lowest priority.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.load import wrk
from benchmark.results import KEPT, Pair
from benchmark.server import Server
from benchmark.tools import GUESTS, compile_program, free_port, kvmserver, tool

CONNECTIONS = 1000
CLIENTS = 8
LOOKS = 10
# More than an attack needs: it is ended when it has been measured.
LASTS_S = 60
MODES = {
    "slow heads": ["-H", "-i", "5"],
    "slow bodies": ["-B", "-i", "5", "-s", "8192", "-x", "10"],
    "ranges": ["-R", "-a", "5", "-b", "2000"],
    "slow reads": ["-X", "-n", "2", "-w", "1", "-y", "64", "-z", "5"],
}


def measure(rounds: int, seconds: float, directory: Path) -> tuple[dict[str, list[Pair]], int]:
    """Throughput without and beside each mode, and the most VMs that were ever found held by slow clients alone."""
    port = free_port()
    # Answers small on / and hugely on /big: what is read slowly has to be more than socket buffers hold.
    program = [compile_program(GUESTS / "failures.c", directory), str(port)]
    words = [
        kvmserver(),
        "-e",
        "-t",
        "1",
        "--warmup",
        "100",
        "--allow-all",
        "--header-timeout",
        "2m",
        "--body-timeout",
        "2m",
    ]
    server = Server([*words, "--write-timeout", "2m", "run", *program], port, directory, True)
    pairs: dict[str, list[Pair]] = {mode: [] for mode in MODES}
    held = 0
    try:
        server.wait()
        wrk(port, KEPT, 1, CLIENTS)
        for _ in range(rounds):
            for mode, found in pairs.items():
                without = wrk(port, KEPT, seconds, CLIENTS).requests_per_s
                with _attack(mode, server):
                    held = max(held, _held(server))
                    found.append(Pair(without=without, with_it=wrk(port, KEPT, seconds, CLIENTS).requests_per_s))
    finally:
        server.stop()
    return pairs, held


@contextmanager
def _attack(mode: str, server: Server) -> Iterator[None]:
    before = server.counters()["connections"]
    path = "/big/300000" if mode == "slow reads" else "/"
    words = ["nice", "-n", "19", tool("slowhttptest", "apt-get install -y slowhttptest"), *MODES[mode]]
    words += [
        "-c",
        str(CONNECTIONS),
        "-r",
        "1000",
        "-l",
        str(LASTS_S),
        "-p",
        "10",
        "-u",
        f"http://127.0.0.1:{server.port}{path}",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + LASTS_S / 2
            # All are here, and what they have asked for in full has been answered.
            while (now := server.counters())["connections"] - before < CONNECTIONS or now["busy_vms"]:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"slowhttptest ({mode}) does not get its {CONNECTIONS} connections")
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + LASTS_S
    while server.counters()["open_connections"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the connections of slowhttptest ({mode}) do not end")
        time.sleep(0.1)


def _held(server: Server) -> int:
    """The most VMs at work in several looks, while nobody but slow clients is there."""
    looks = []
    for _ in range(LOOKS):
        looks.append(int(server.counters()["busy_vms"]))
        time.sleep(0.05)
    return max(looks)
