"""Programs with several listening sockets, and other addresses in their place: which leads where."""

import contextlib
import socket
import subprocess

import pytest
from harness import PROGRAMS, PYTHON, Kvmserver, ask, ask_often, clean_environment, free_port

# What systemd does: the sockets are descriptors 3 and up, and the variables name the process that is started.
ACTIVATE = """
import os, sys
count = int(sys.argv[1])
for place in range(count):
    os.dup2(int(sys.argv[2 + place]), 100 + place)
for place in range(count):
    os.dup2(100 + place, 3 + place, inheritable=True)
os.environ.update({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)})
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def program(*ports: int) -> list[str]:
    """It answers with the place of the listener that a request came to."""
    return [PYTHON, str(PROGRAMS / "listeners.py"), *map(str, ports)]


def test_each_listener_of_a_program_serves(kvmserver: Kvmserver) -> None:
    ports = [free_port(), free_port()]
    kvmserver.serve(program(*ports), ports[0], threads=2)
    for place, port in enumerate(ports, 1):
        assert ask_often(port, 20, 2) == {str(place): 20}


@pytest.mark.parametrize(("own", "leads_to"), [(2, [1, 2]), (2, [1, 2, 2]), (3, [1, 2])])
def test_addresses_take_the_place_of_listeners_in_their_order(
    own: int, leads_to: list[int], kvmserver: Kvmserver
) -> None:
    """The first is for the first. Those beyond the last listener are for that one; a listener may get none."""
    inside, outside = [free_port() for _ in range(own)], [free_port() for _ in leads_to]
    listen = [word for port in outside for word in ("--listen", f"tcp:127.0.0.1:{port}")]
    kvmserver.serve(program(*inside), outside[0], *listen, threads=2)
    for port, place in zip(outside, leads_to, strict=True):
        assert ask_often(port, 20, 2) == {str(place): 20}
    for port in inside:
        with pytest.raises(ConnectionRefusedError):
            ask(port)


def test_two_sockets_of_systemds_activation(kvmserver: Kvmserver) -> None:
    with contextlib.ExitStack() as stack:
        inherited = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in range(2)]
        numbers = [str(one.fileno()) for one in inherited]
        command = [kvmserver.script, "-e", "--allow-all", "run", *program(free_port(), free_port())]
        process = subprocess.Popen(
            [PYTHON, "-c", ACTIVATE, "2", *numbers, *command],
            pass_fds=[one.fileno() for one in inherited],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
        try:
            for place, one in enumerate(inherited, 1):
                assert [ask(one.getsockname()[1]).body for _ in range(5)] == [f"{place}\n"] * 5
        finally:
            process.terminate()
            _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
