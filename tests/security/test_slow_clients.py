"""slowhttptest, a tool that holds servers up in four ways, against one VM: it is never held, and others are served.

scripts/bench measures what it costs the others; here is only a bound that a busy machine keeps, too.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from harness import Guests, Kvmserver, Service, ask_often, find_tool, wait_until
from wire import within

CONNECTIONS = 1000
# More than the looks below need: it is ended behind them.
LASTS_S = 30
CLIENTS = 8
# Of the undisturbed throughput, in the better of a few runs of wrk.
SHARE = 0.6
RUNS = 3
MODES = {
    "headers": ["-H", "-i", "1"],
    "body": ["-B", "-i", "1", "-s", "8192", "-x", "10"],
    "range": ["-R", "-a", "5", "-b", "2000"],
    "read": ["-X", "-n", "1", "-w", "1", "-y", "64", "-z", "5"],
}


@pytest.fixture(scope="module")
def service(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """A counter that answers 4, and one VM for all."""
    with installed.serving([guests.c("failures")], warmup=3) as started:
        yield started


def requests_per_s(service: Service) -> float:
    """What wrk gets in a second; all of it has to be right."""
    words = [find_tool("wrk"), "-t", "1", "-c", str(CLIENTS), "-d", "1s", f"http://127.0.0.1:{service.port}/"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    found = re.search(r"Requests/sec: +([\d.]+)", said)
    assert found, said
    return float(found[1])


@pytest.mark.parametrize("mode", MODES)
def test_slowhttptest_holds_no_vm(mode: str, service: Service) -> None:
    # What it reads slowly has to be more than socket buffers hold.
    path = "/big/300000" if mode == "read" else "/"
    words = [find_tool("slowhttptest"), *MODES[mode], "-c", str(CONNECTIONS), "-r", "1000", "-l", str(LASTS_S)]
    words += ["-u", f"http://127.0.0.1:{service.port}{path}", "-p", "5"]
    undisturbed = requests_per_s(service)
    before = service.statistics()["connections"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as attack:
        try:
            wait_until(
                lambda: service.statistics()["connections"] - before >= CONNECTIONS, 30, "a thousand connections", 0.1
            )
            # Requests that came whole are answered by now: what is left is slow.
            wait_until(lambda: service.statistics()["busy_vms"] == 0, 20, "an idle VM", 0.1)
            for _ in range(10):
                told = service.statistics()
                assert told["busy_vms"] == 0, told
                assert told["waiting_requests"] == 0, told
                time.sleep(0.1)
            if mode != "range":
                assert service.statistics()["open_connections"] > CONNECTIONS / 2, "the slow clients are still here"
            with within(10):
                assert ask_often(service.port, 200, 2) == {"4": 200}
            # An attacker computes elsewhere.
            os.setpriority(os.PRIO_PROCESS, attack.pid, 19)
            rates = [requests_per_s(service)]
            while rates[-1] < SHARE * undisturbed and len(rates) < RUNS:
                rates.append(requests_per_s(service))
            assert rates[-1] >= SHARE * undisturbed, (undisturbed, rates)
            wait_until(lambda: service.statistics()["busy_vms"] == 0, 10, "an idle VM", 0.1)
        finally:
            attack.send_signal(signal.SIGINT)
            assert attack.stdout is not None
            said = attack.stdout.read()
    available = re.findall(r"service available: +(\w+)", re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", said))
    assert available, said[-2000:]
    assert set(available) == {"YES"}, "its own probes were answered"
