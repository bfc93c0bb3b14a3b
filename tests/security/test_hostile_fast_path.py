"""A program that jumps anywhere into the code of the in-guest fast path, with garbage in its memory and registers."""

import http.client
import re
from collections import Counter

from harness import FEWER, Guests, Kvmserver, Service, ask_often, free_port

ENDS = {"returned", "signal 4", "signal 5", "signal 8", "signal 11", "signal 13", "signal 14", "signal 31"}


def end_of(service: Service, path: str) -> str:
    """What becomes of a jump: what the program says, or how the request ends where it cannot say anything."""
    try:
        answer = service.ask(path)
    except http.client.IncompleteRead:
        return "breaks off"
    except http.client.HTTPException as error:
        return type(error).__name__
    return answer.body.strip() if answer.status == 200 and answer.body.strip() in ENDS else str(answer.status)


def test_a_jump_to_any_byte_of_the_code_harms_only_the_request_itself(guests: Guests, kvmserver: Kvmserver) -> None:
    """What is interrupted there goes on with what the program has saved: that may be no address, no flags, no call."""
    port = free_port()
    program = ["--fast-path", guests.c("attack_fast_path"), str(port)]
    # Its calls have any arguments: it may write no file of ours.
    service = kvmserver.serve(program, port, "--max-request-time", "1", grants=("--allow-net", "--allow-read"))
    length = int(service.ask("/size").body)
    assert length > 1000
    ends = Counter[str]()
    for offset in range(0, length, FEWER):
        ends[end_of(service, f"/jump/{offset}/{offset}")] += 1
        if offset % 256 == 0:
            assert service.ask().body == "1\n", "an ordinary request after it"
    # All ways out are met: through to the program, by a fault, by an interruption, and by a lie to the host.
    assert {"returned", "signal 11", "signal 14", "502"} <= set(ends), ends
    assert set(ends) <= {*ENDS, "200", "502", "504", "breaks off"}, ends
    before = service.statistics()
    assert ask_often(service.port, 20) == {"1": 20}
    assert service.statistics()["totals.calls_in_guest"] >= before["totals.calls_in_guest"] + 20
    assert "(the fast path's)" in service.log
    assert not re.search("panicked|differs|cannot reset|the virtual machine failed", service.log), service.story()
    assert service.statistics().get("failures.broken", 0) == 0
    kvmserver.stop(service)
