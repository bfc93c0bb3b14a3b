"""Programs that are no servers: they run as natively, with their input, output and exit status passed through."""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, find_tool


def text(data: bytes) -> str:
    return data.decode(errors="replace")


def test_uname_prints_a_linux_line(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-read", "run", "uname", "-a")
    assert done.returncode == 0, text(done.stderr)
    assert done.stdout.startswith(b"Linux ")
    assert b"x86_64" in done.stdout
    assert done.stdout.count(b"\n") == 1


def test_cowsay_of_debian(kvmserver: Kvmserver) -> None:
    cowsay = find_tool("/usr/games/cowsay")
    words = [cowsay, "Hello TinyKVM World"]
    native = subprocess.run(["perl", *words], capture_output=True, check=True)
    done = kvmserver.run("--allow-read", "run", "perl", *words)
    assert done.returncode == 0, text(done.stderr)
    assert b"< Hello TinyKVM World >" in done.stdout
    assert done.stdout == native.stdout


def test_python_computes(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "run", "python3", "-c", "print(sum(range(10**6)))")
    assert (done.returncode, done.stdout) == (0, b"499999500000\n"), text(done.stderr)


def test_python_imports_extension_modules(kvmserver: Kvmserver) -> None:
    """T24: shared objects with relocations of every kind."""
    code = "import ctypes, decimal, hashlib, json, math, random, sqlite3, ssl, zlib; print(zlib.crc32(b'x'), math.pi)"
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code)
    assert (done.returncode, done.stdout) == (0, b"2363233923 3.141592653589793\n"), text(done.stderr)


def test_python_threads(kvmserver: Kvmserver) -> None:
    code = "import concurrent.futures as f; print(sum(f.ThreadPoolExecutor(8).map(lambda n: n * n, range(1000))))"
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code)
    assert (done.returncode, done.stdout) == (0, b"332833500\n"), text(done.stderr)


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status_passes_through(status: int, kvmserver: Kvmserver) -> None:
    """K23: a program that is no server ends as it does natively."""
    done = kvmserver.run("--allow-all", "run", "sh", "-c", f"exit {status}")
    assert done.returncode == status, text(done.stderr)


def test_an_exit_in_a_thread_ends_the_program(kvmserver: Kvmserver) -> None:
    """N5: exit_group of any thread, with its status; the first thread waits for ever."""
    code = "import os, threading; threading.Thread(target=lambda: os._exit(7)).start(); threading.Event().wait()"
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code, timeout_s=60)
    assert done.returncode == 7, text(done.stderr)


def test_flags_of_our_streams_stay_ours(kvmserver: Kvmserver) -> None:
    """T14: what a program sets on its standard streams is set in its own Linux, not on our descriptors."""
    code = """
import fcntl, os
for fd in range(3):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
print([bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK) for fd in range(3)])
"""
    pipes = [os.pipe() for _ in range(3)]
    ours = [pipes[0][0], pipes[1][1], pipes[2][1]]
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in ours]
    words = [kvmserver.script, "--allow-all", "run", "python3", "-c", code]
    done = subprocess.run(words, stdin=ours[0], stdout=ours[1], stderr=ours[2], timeout=60)
    assert done.returncode == 0
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in ours] == before
    assert os.read(pipes[1][0], 100) == b"[True, True, True]\n"
    for fd in (end for pipe in pipes for end in pipe):
        os.close(fd)


def test_standard_streams_pass_through(kvmserver: Kvmserver) -> None:
    script = 'read line; echo "out: $line"; echo "err: $line" >&2; while read -r line; do echo "$line"; done; exit 3'
    done = kvmserver.run("--allow-all", "run", "sh", "-c", script, stdin=b"first\nsecond line\n\nlast\n")
    assert done.returncode == 3, text(done.stderr)
    assert done.stdout == b"out: first\nsecond line\n\nlast\n"
    assert done.stderr == b"err: first\n"


def test_a_program_copies_its_input(kvmserver: Kvmserver) -> None:
    data = bytes(range(256)) * 4096
    done = kvmserver.run("--allow-all", "run", "cat", stdin=data)
    assert done.returncode == 0, text(done.stderr)
    assert done.stdout == data, "T25: a long write loses nothing"


def test_output_to_a_closed_reader_ends_the_program(kvmserver: Kvmserver, guests: Guests) -> None:
    done = subprocess.run(
        f"{kvmserver.script} --allow-all run yes | head -n 2", shell=True, capture_output=True, timeout=60
    )
    assert done.stdout == b"y\ny\n"


def test_closing_stdout_in_the_guest_leaves_ours_open(kvmserver: Kvmserver) -> None:
    """T40: the guest's descriptors are its own."""
    code = "import os; os.close(0); os.close(1); os.write(2, b'still here\\n'); os.close(2); os._exit(5)"
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code)
    assert done.returncode == 5
    assert b"still here\n" in done.stderr


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", signal.SIGTERM),
        ("os.abort()", signal.SIGABRT),
        ("ctypes.string_at(8)", signal.SIGSEGV),
    ],
)
def test_death_by_signal_is_128_and_its_number(code: str, number: int, kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "run", "python3", "-c", f"import ctypes, os, signal; {code}")
    assert done.returncode == 128 + number, text(done.stderr)
    if number == signal.SIGSEGV:
        assert b"SIGSEGV" in done.stderr


def test_a_program_that_is_not_found(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "run", "no-such-program-anywhere")
    assert done.returncode == 127
    assert b"no-such-program-anywhere" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_program_that_cannot_be_executed(kvmserver: Kvmserver, scratch: Path) -> None:
    plain = scratch / "plain"
    plain.write_text("just text\n")
    for mode in (0o644, 0o755):
        plain.chmod(mode)
        done = kvmserver.run("--allow-all", "run", str(plain))
        assert done.returncode == 126, f"mode {mode:o}: {text(done.stderr)}"
        assert b"plain" in done.stderr


@pytest.mark.parametrize("damage", ["truncated", "arm", "32-bit", "directory"])
def test_files_that_are_no_programs(damage: str, kvmserver: Kvmserver, guests: Guests, scratch: Path) -> None:
    path = scratch / "program"
    image = bytearray(Path(guests.c("server_poll")).read_bytes())
    if damage == "truncated":
        del image[60:]
    if damage == "arm":
        image[18:20] = (183).to_bytes(2, "little")
    if damage == "32-bit":
        image[4] = 1
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes(image)
        path.chmod(0o755)
    done = kvmserver.run("--allow-all", "run", str(path))
    assert done.returncode == 126, text(done.stderr)
    assert b"Traceback" not in done.stderr
    assert b"panicked" not in done.stderr


def test_scripts_run_through_their_interpreter(kvmserver: Kvmserver, scratch: Path) -> None:
    script = scratch / "script"
    script.write_text('#!/bin/sh\necho "$0" "$1"\nexit 9\n')
    script.chmod(0o755)
    done = kvmserver.run("--allow-all", "run", str(script), "an argument")
    assert (done.returncode, text(done.stdout)) == (9, f"{script} an argument\n"), text(done.stderr)
    script.write_text("#!/usr/bin/env python3\nimport sys\nprint(sys.argv[1:])\n")
    done = kvmserver.run("--allow-all", "run", str(script), "a", "b c")
    assert (done.returncode, done.stdout) == (0, b"['a', 'b c']\n"), text(done.stderr)
    script.write_text("#!/no/such/interpreter\n")
    done = kvmserver.run("--allow-all", "run", str(script))
    assert done.returncode in (126, 127)
    assert b"/no/such/interpreter" in done.stderr


@pytest.mark.parametrize("flavour", ["dynamic", "static", "static-pie", "musl", "musl-dynamic"])
def test_every_kind_of_elf_runs(flavour: str, kvmserver: Kvmserver, guests: Guests) -> None:
    done = kvmserver.run("--allow-all", "run", guests.c("run_time_code", flavour), "once")
    assert done.returncode == 0, text(done.stderr)
    assert done.stdout.startswith(b"run-time code: ok\n")


def test_options_after_the_program_are_its_own(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "run", "echo", "--allow-all", "-t", "x", "--", "--help")
    assert (done.returncode, done.stdout) == (0, b"--allow-all -t x -- --help\n"), text(done.stderr)


def test_cwd_and_environment_options(kvmserver: Kvmserver, scratch: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['A'], os.environ['B'])"
    done = kvmserver.run(
        "--allow-all", "--cwd", str(scratch), "--env", "A=1 2", "--env", "B==", "run", "python3", "-c", code
    )
    assert (done.returncode, text(done.stdout)) == (0, f"{scratch} 1 2 =\n"), text(done.stderr)


def test_verbose_syscalls_prints_a_line_for_each_call(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "--verbose-syscalls", "run", "uname", "-s")
    assert (done.returncode, done.stdout) == (0, b"Linux\n")
    for name in (b"execve" if b"execve" in done.stderr else b"mmap", b"uname", b"write", b"exit_group"):
        assert name in done.stderr


def test_a_short_program_is_fast(kvmserver: Kvmserver) -> None:
    start = time.monotonic()
    for _ in range(3):
        assert kvmserver.run("--allow-all", "run", "true").returncode == 0
    assert time.monotonic() - start < 15


def test_a_deadlock_is_reported_not_waited_for(kvmserver: Kvmserver, scratch: Path, guests: Guests) -> None:
    code = "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"
    done = kvmserver.run("--allow-all", "run", "python3", "-c", code, timeout_s=60)
    assert done.returncode != 0
    assert b"wait" in done.stderr
