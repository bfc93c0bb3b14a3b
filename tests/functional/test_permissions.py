"""Deny by default: a guest sees the files, variables and addresses that it was granted, and nothing else."""

from pathlib import Path

import pytest
from harness import EchoPeers, Guests, Kvmserver, free_port

READ = "import sys; print(open(sys.argv[1]).read(), end='')"


def cat(kvmserver: Kvmserver, path: Path | str, *grants: str) -> tuple[int, str]:
    done = kvmserver.run(*grants, "run", "cat", str(path))
    return done.returncode, done.stdout.decode(errors="replace")


@pytest.fixture
def secret(scratch: Path) -> Path:
    (scratch / "inside").mkdir()
    (scratch / "inside" / "secret").write_text("the secret\n")
    (scratch / "outside").write_text("outside\n")
    return scratch / "inside" / "secret"


def test_without_a_grant_a_program_starts_and_sees_no_files(kvmserver: Kvmserver, secret: Path) -> None:
    assert cat(kvmserver, secret)[0] == 1
    for path in ("/etc/passwd", "/etc/hostname", "/proc/1/cmdline", "/root", "/home", "/var/log/dpkg.log"):
        assert cat(kvmserver, path) == (1, "")


def test_a_read_grant_shows_its_tree_and_no_more(kvmserver: Kvmserver, secret: Path) -> None:
    for grant in (f"--allow-read={secret.parent}", f"--allow-read={secret.parent}/", f"--allow-read={secret}"):
        assert cat(kvmserver, secret, grant) == (0, "the secret\n"), f"K1: {grant}"
        assert cat(kvmserver, secret.parent.parent / "outside", grant) == (1, "")
        assert cat(kvmserver, f"{secret.parent}/../outside", grant) == (1, "")
    assert cat(kvmserver, secret, "--allow-read") == (0, "the secret\n")


def test_a_link_out_of_a_grant_leads_nowhere(kvmserver: Kvmserver, secret: Path) -> None:
    (secret.parent / "absolute").symlink_to(secret.parent.parent / "outside")
    (secret.parent / "relative").symlink_to("../outside")
    (secret.parent / "good").symlink_to("secret")
    grant = f"--allow-read={secret.parent}"
    assert cat(kvmserver, secret.parent / "good", grant) == (0, "the secret\n")
    assert cat(kvmserver, secret.parent / "absolute", grant) == (1, "")
    assert cat(kvmserver, secret.parent / "relative", grant) == (1, "")


def test_a_read_grant_cannot_write(kvmserver: Kvmserver, secret: Path) -> None:
    """T11: not through any flag of open, nor by name."""
    code = f"""
import os
path = {str(secret)!r}
attempts = [
    lambda: os.open(path, os.O_WRONLY), lambda: os.open(path, os.O_RDWR),
    lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: os.open(path + "-new", os.O_RDWR | os.O_CREAT),
    lambda: os.unlink(path), lambda: os.rename(path, path + "2"),
    lambda: os.mkdir(path + "-d"), lambda: os.chmod(path, 0o777), lambda: os.truncate(path, 0), lambda: os.utime(path),
    lambda: os.symlink("x", path + "-l"), lambda: os.link(path, path + "-h"), lambda: os.mkfifo(path + "-f"),
]
for attempt in attempts:
    try:
        attempt()
        print("allowed")
    except OSError as error:
        print(error.errno in (1, 13, 30))
"""
    done = kvmserver.run("--allow-read", "run", "python3", "-c", code)
    assert done.stdout.decode().split() == ["True"] * 13, done.stderr.decode()
    assert secret.read_text() == "the secret\n"
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret"]


def test_statx_tells_nothing_of_what_is_denied(kvmserver: Kvmserver, secret: Path) -> None:
    """T12: coreutils' stat asks by statx."""
    words = ["run", "stat", "--format=%s", str(secret)]
    done = kvmserver.run("--verbose-syscalls", *words)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"statx(" in done.stderr
    done = kvmserver.run(f"--allow-read={secret}", *words)
    assert (done.returncode, done.stdout) == (0, b"11\n"), done.stderr.decode()


def test_a_write_grant_writes_its_tree_and_no_more(kvmserver: Kvmserver, secret: Path) -> None:
    """K2: a broad grant to read beside a narrow one to write."""
    code = "import sys; open(sys.argv[1], 'w').write('written\\n')"
    grants = ["--allow-read", f"--allow-write={secret.parent}"]
    assert kvmserver.run(*grants, "run", "python3", "-c", code, str(secret)).returncode == 0
    assert secret.read_text() == "written\n"
    assert cat(kvmserver, secret, *grants) == (0, "written\n")
    outside = secret.parent.parent / "outside"
    assert kvmserver.run(*grants, "run", "python3", "-c", code, str(outside)).returncode == 1
    assert outside.read_text() == "outside\n"


def test_volumes_show_a_path_somewhere_else(kvmserver: Kvmserver, secret: Path) -> None:
    volume = f"{secret.parent}:/data"
    assert cat(kvmserver, "/data/secret", "--volume", volume) == (0, "the secret\n")
    assert cat(kvmserver, secret, "--volume", volume) == (1, "")
    assert cat(kvmserver, "/data/../outside", "--volume", volume) == (1, "")
    code = "import sys; open(sys.argv[1], 'w').write('written\\n')"
    python = ["--allow-read=/usr,/lib,/lib64,/root/.pyenv,/opt", "run", "python3", "-c", code, "/data/secret"]
    assert kvmserver.run("--volume", volume, *python).returncode == 1
    assert secret.read_text() == "the secret\n"
    assert kvmserver.run("--volume", f"{volume}:rw", *python).returncode == 0
    assert secret.read_text() == "written\n"


def test_the_environment_is_empty_but_for_what_a_program_needs(kvmserver: Kvmserver) -> None:
    secret = {"MY_SECRET": "hidden", "MY_OTHER": "shown", "HOME": "/root"}
    done = kvmserver.run("run", "env", environment=secret)
    assert done.returncode == 0, done.stderr.decode()
    names = {line.partition("=")[0] for line in done.stdout.decode().splitlines()}
    assert "PATH" in names
    assert names <= {"PATH", "HOME", "LANG"}
    done = kvmserver.run("--allow-env=MY_OTHER", "run", "env", environment=secret)
    assert b"MY_OTHER=shown" in done.stdout
    assert b"hidden" not in done.stdout
    done = kvmserver.run("--allow-env=MY_*", "--env", "ADDED=x=y", "run", "env", environment=secret)
    assert b"MY_SECRET=hidden" in done.stdout
    assert b"ADDED=x=y" in done.stdout


CONNECT = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).sendall(b"x")
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def test_no_network_without_a_grant(kvmserver: Kvmserver, peers: EchoPeers) -> None:
    def connect(*grants: str) -> str:
        done = kvmserver.run("--allow-read", *grants, "run", "python3", "-c", CONNECT, str(peers.tcp_port))
        return done.stdout.decode().strip()

    assert connect() == "PermissionError"
    assert connect("--allow-net") == "connected"
    assert connect("--allow-connect") == "connected"
    assert connect(f"--allow-connect=127.0.0.1:{peers.tcp_port}") == "connected"
    assert connect("--allow-connect=127.0.0.1:1") == "PermissionError"
    assert connect("--allow-listen") == "PermissionError"


def test_two_ipv6_grants_are_both_usable(kvmserver: Kvmserver) -> None:
    """K3: whether or not anybody answers there; another port of the same address stays forbidden."""
    code = """
import socket
for port in (1, 2, 3):
    try:
        socket.create_connection(("::1", port), timeout=5)
    except OSError as error:
        print(isinstance(error, PermissionError))
"""
    grants = ["--allow-read", "--allow-connect=[::1]:1,[::1]:2"]
    done = kvmserver.run(*grants, "run", "python3", "-c", code)
    assert done.stdout.split() == [b"False", b"False", b"True"], done.stderr.decode()


def test_no_listener_without_a_grant(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    program = [guests.c("server_epoll"), str(port)]
    done = kvmserver.run("-e", "run", *program)
    assert done.returncode == 1
    assert b"--allow-listen" in done.stderr
    for grant in (f"--allow-listen=:{port}", "--allow-listen", "--allow-net"):
        service = kvmserver.serve(program, port, warmup=2, grants=[grant])
        assert service.ask().body == "3\n"
        kvmserver.stop(service)


def test_the_vmm_is_out_of_reach_even_with_all_grants(kvmserver: Kvmserver) -> None:
    """/proc and /dev are the guest's own: no way to the process that runs it, nor to KVM."""
    code = """
import os
seen = os.listdir("/proc")
print(sorted(int(name) for name in seen if name.isdigit()) == [os.getpid()])
print(os.path.exists("/dev/kvm"), os.path.exists(f"/proc/{os.getpid() + 1}"))
print(open("/proc/self/cmdline").read().split("\\0")[1] == "-c", "_vm" + "m.abi3" in open("/proc/self/maps").read())
numbers = [number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]
print(any("kvm" in os.readlink(f"/proc/self/fd/{number}") for number in numbers))
"""
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code)
    assert done.stdout.decode().splitlines() == ["True", "False False", "True False", "False"], done.stderr.decode()


def test_files_and_links_are_the_same_before_and_after_the_fork(kvmserver: Kvmserver, scratch: Path) -> None:
    """K13: what can be opened at the start can be opened in every request, with the same result."""
    (scratch / "file").write_text("content")
    (scratch / "server.py").write_text(
        """
import os, sys
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer

def look():
    return repr([open("file").read(), os.stat("file").st_size, os.readlink("/proc/self/exe"), os.getcwd(),
                 os.path.exists("missing"), sorted(os.listdir("."))])

first = look()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        same = look() == first
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr(same).encode())

    def log_message(self, *args):
        pass

TCPServer.allow_reuse_address = True
TCPServer(("", int(sys.argv[1])), Handler).serve_forever()
"""
    )
    port = free_port()
    service = kvmserver.serve(["python3", "server.py", str(port)], port, "--cwd", str(scratch), threads=2, warmup=3)
    assert {service.ask().body for _ in range(30)} == {"True"}
    kvmserver.stop(service)
