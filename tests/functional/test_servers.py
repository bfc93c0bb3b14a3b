"""Servers of each kind in C: after the warm-up every request sees the counter of the snapshot, for ever."""

import pytest
from harness import Guests, Kvmserver, Service, ask_often, exchange, free_port, repetitions

# program, mode, and the word of the start-up line
KINDS = [
    ("server_epoll", "lt", "epoll"),
    ("server_epoll", "et", "epoll"),
    ("server_epoll", "nested", "epoll"),
    ("server_epoll", "pwait2", "epoll"),
    ("server_epoll", "noctldel", "epoll"),
    ("server_epoll", "two", "poll"),
    ("server_epoll", "thread", "epoll"),
    ("server_poll", "poll", "poll"),
    ("server_poll", "ppoll", "poll"),
    ("server_select", "select", "select"),
    ("server_select", "pselect", "select"),
    ("server_accept", "accept", "accept"),
    ("server_accept", "accept4", "accept"),
    ("server_accept", "thread", "accept"),
]
REQUESTS = 1000  # K22: what fails once in a while fails here


def check_frozen(service: Service, expected: str, clients: int, requests: int = REQUESTS) -> None:
    """The answer is the same to every request, from any number of clients at once."""
    number = repetitions(requests)
    assert ask_often(service.port, number, clients) == {expected: number}
    assert service.process.poll() is None


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("program", "mode", "wait"), KINDS)
def test_counter_is_frozen(
    program: str, mode: str, wait: str, threads: int, guests: Guests, kvmserver: Kvmserver
) -> None:
    """K7: every way to wait; K11: two epoll sets, one in the other or side by side; K12: accept4 with SOCK_NONBLOCK."""
    port = free_port()
    service = kvmserver.serve([guests.c(program), str(port), mode], port, threads=threads, warmup=20)
    assert service.ready is not None
    assert service.ready.wait == wait
    check_frozen(service, "21", clients=threads)
    kvmserver.stop(service)


@pytest.mark.parametrize("flavour", ["static", "static-pie", "musl", "musl-dynamic"])
def test_counter_of_other_builds_is_frozen(flavour: str, guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll", flavour), str(port)], port, threads=2, warmup=5)
    check_frozen(service, "6", clients=2, requests=300)
    kvmserver.stop(service)


def test_without_warmup_the_first_request_is_number_one(guests: Guests, kvmserver: Kvmserver) -> None:
    """K10: the first request is served at once."""
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port)
    assert service.ready is not None
    assert "warmup" not in service.ready.values
    check_frozen(service, "1", clients=1, requests=50)
    kvmserver.stop(service)


def test_without_ephemeral_the_counter_counts(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.start(
        "-t", "1", "--warmup", "10", "--allow-all", "run", guests.c("server_epoll"), str(port), port=port
    ).wait_ready()
    assert service.ready is not None
    assert not service.ready.ephemeral
    assert [service.ask().body for _ in range(20)] == [f"{number}\n" for number in range(11, 31)]
    kvmserver.stop(service)


def test_two_listeners_both_serve(guests: Guests, kvmserver: Kvmserver) -> None:
    """N14: every listener of the program is served, not only the last."""
    first, second = free_port(), free_port()
    service = kvmserver.serve([guests.c("server_poll"), str(first), "two", str(second)], first, threads=2, warmup=3)
    assert ask_often(first, 50) == {"4": 50}
    assert ask_often(second, 50) == {"4": 50}
    kvmserver.stop(service)


def test_request_bodies_and_large_answers(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, warmup=2)
    for size in (0, 1, 1000, 16_000, 60_000):
        body = bytes(index % 251 for index in range(size))
        assert service.ask("/echo", "POST", body).body.encode("latin-1") == body
    for size in (1, 4096, 65_536, 1_000_000, 5_000_000):
        answer = service.ask(f"/big/{size}").body
        assert len(answer) == size
        assert answer[:1000] == "".join(chr(97 + index * 7 // 5 % 26) for index in range(min(size, 1000)))
    assert service.ask().body == "3\n"
    kvmserver.stop(service)


def test_clients_that_behave_badly_do_no_harm(guests: Guests, kvmserver: Kvmserver) -> None:
    """K25: clients that send nothing, half a request or nonsense, or leave in the middle of an answer."""
    import socket

    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, threads=2, warmup=2)
    for turn in range(100):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            if turn % 4 == 0:
                continue
            client.sendall(
                [b"", b"GET / HT", b"\x00\xff\r\n\r\n", b"GET /big/5000000 HTTP/1.1\r\nHost: x\r\n\r\n"][turn % 4]
            )
            if turn % 4 == 3:
                client.recv(10)
    assert ask_often(port, 200, 2) == {"3": 200}
    nonsense = exchange(port, b"NONSENSE\r\n\r\n")
    assert nonsense == b"" or nonsense.startswith(b"HTTP/1.1 400")
    assert service.ask().body == "3\n"
    kvmserver.stop(service)


def test_a_slow_client_does_not_hold_the_vm(guests: Guests, kvmserver: Kvmserver) -> None:
    """A request that trickles in leaves the only VM to the others."""
    import socket

    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, warmup=2)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert ask_often(port, 100) == {"3": 100}
        slow.sendall(b"Connection: close\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 OK")
    kvmserver.stop(service)
