"""Time in request VMs: monotonic time resumes at the snapshot's instant in every request, real time is always true."""

import json
import time

from harness import PROGRAMS, PYTHON, Kvmserver, free_port

IDLE_S = 4.0


def test_monotonic_time_stands_still_between_requests_and_real_time_does_not(kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([PYTHON, str(PROGRAMS / "clocks.py"), str(port)], port, threads=2, warmup=10)
    first = json.loads(service.ask().body)
    time.sleep(IDLE_S)
    answers = [json.loads(service.ask().body) for _ in range(20)]
    now = time.time()
    for answer in [first, *answers]:
        # The snapshot's instant, and what a request takes on a busy machine; never the time between requests.
        assert abs(answer["monotonic"] - first["monotonic"]) < IDLE_S / 2
        assert abs(answer["monotonic_call"] - answer["monotonic"]) < 0.5
        assert abs(answer["realtime_call"] - answer["realtime"]) < 0.5
    assert all(abs(answer["realtime"] - now) < IDLE_S / 2 for answer in answers)
    assert now - first["realtime"] > IDLE_S
    # A snapshot that was frozen once must not make equal random numbers for ever.
    assert len({answer["random"] for answer in answers}) == len(answers)
    kvmserver.stop(service)
