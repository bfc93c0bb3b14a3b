"""Where clients are awaited: what is written, and the sockets that come of it."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from kvmserver import listen
from kvmserver.errors import StartError
from kvmserver.listen import Inherited, TcpAddress, UnixAddress


def test_addresses_have_three_forms() -> None:
    assert listen.parse("tcp:127.0.0.1:80") == TcpAddress("127.0.0.1", 80)
    assert listen.parse("tcp:[::1]:80") == TcpAddress("::1", 80)
    assert listen.parse("tcp:localhost:0") == TcpAddress("localhost", 0)
    assert listen.parse("tcp::80") == listen.parse("tcp:*:80") == TcpAddress("", 80)
    assert listen.parse("unix:/run/a:b") == UnixAddress("/run/a:b")
    assert listen.parse("fd:3") == Inherited(3)


@pytest.mark.parametrize(
    "text",
    ["", "80", "tcp:80", "tcp:a:65536", "tcp:a:+1", "tcp:::1:80", "unix:", "fd:", "fd:-1", "fd:0", "fd:2", "udp:a:1"],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not one of|standard streams"):
        listen.parse(text)


def test_a_path_has_to_fit() -> None:
    with pytest.raises(ValueError, match="107"):
        listen.parse("unix:/" + "a" * 107)


def test_what_systemd_hands_over() -> None:
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": "17", "LISTEN_FDNAMES": "a:b", "PATH": "/bin"}
    assert listen.activated(environment, 17) == ("fd:3", "fd:4")
    assert environment == {"PATH": "/bin"}
    assert listen.activated({"LISTEN_FDS": "2", "LISTEN_PID": "18"}, 17) == ()
    assert listen.activated({"LISTEN_FDS": "x", "LISTEN_PID": "17"}, 17) == ()
    assert listen.activated({}, 17) == ()


def test_bound_sockets_listen_when_they_are_told_to() -> None:
    with contextlib.ExitStack() as stack:
        fds = listen.open_sockets(["tcp:127.0.0.1:0", "tcp::0", "tcp:[::1]:0"], stack)
        names = []
        for fd in fds:
            with socket.socket(fileno=os.dup(fd)) as bound:
                names.append((bound.family, bound.getsockname()))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(names[0][1])
        for fd in fds:
            listen.begin(fd)
        for family, name in names:
            socket.create_connection(("127.0.0.1" if family == socket.AF_INET else "::1", name[1])).close()
        # Without a host both families are awaited.
        socket.create_connection(("127.0.0.1", names[1][1][1])).close()


def test_a_busy_address_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.ExitStack() as stack:
        address = f"tcp:127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=f"cannot listen on {address}: address already in use"):
            listen.open_sockets([address], stack)


def test_a_unix_socket_is_removed_with_us(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        listen.begin(listen.open_sockets([f"unix:{path}"], stack)[0])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        with contextlib.ExitStack() as other, pytest.raises(StartError, match="in use"):
            listen.open_sockets([f"unix:{path}"], other)
    assert not path.exists()


def test_a_stale_unix_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with contextlib.ExitStack() as stack:
        listen.begin(listen.open_sockets([f"unix:{path}"], stack)[0])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    path.write_text("precious")
    with contextlib.ExitStack() as stack, pytest.raises(StartError, match="in use"):
        listen.open_sockets([f"unix:{path}"], stack)
    assert path.read_text() == "precious"


def test_a_descriptor_has_to_be_a_stream_socket(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        inherited = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        assert listen.open_sockets([f"fd:{inherited.fileno()}"], stack) == [inherited.fileno()]
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        file = stack.enter_context((tmp_path / "file").open("w"))
        for fd in (datagrams.fileno(), file.fileno(), 999_999):
            with pytest.raises(StartError, match=f"cannot listen on fd:{fd}"):
                listen.open_sockets([f"fd:{fd}"], stack)
