"""The storage program over a pretended data plane: it starts first, is handed to one worker, and its end is told."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from .conftest import Command, Running

Start = Callable[..., Running]


@pytest.fixture
def start_pair(command: Command) -> Iterator[Start]:
    """Start a pretended server beside a pretended storage program; what still runs at the end is ended."""
    started: list[Running] = []

    def start(*options: str, storage: str = "keeper", own: tuple[str, ...] = (), server: str = "server") -> Running:
        words = ("storage", *own, command.program(storage), "++", "run", command.program(server))
        started.append(command.start(*options, *words))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


def test_the_storage_line_comes_first(start_pair: Start) -> None:
    running = start_pair("-e", "-w", "20")
    assert running.lines[0] == "Storage VM initialized. init=416ms\n"
    assert running.lines[1].startswith("Warming up the guest VM listening on 0.0.0.0:8000 ")
    assert running.lines[2].startswith("Program 'server' loaded. epoll vm=1 ephemeral init=161ms warmup=")
    assert running.finish()[0] == 0


@pytest.mark.parametrize(
    ("name", "options", "code", "error"),
    [
        ("status3", [], 1, "error: the storage program 'status3' exited with status 3 before it waited for calls\n"),
        ("segfault", [], 1, "the storage program 'segfault' was killed by signal 11 (SIGSEGV) before it waited for"),
        ("hang", ["--max-boot-time=2"], 1, "error: the storage program 'hang' did not wait for calls within 2s\n"),
        ("panic", [], 1, "error: internal error: Panic: index out of bounds\n"),
        ("notelf", [], 126, "error: storage program 'notelf': cannot execute /x/notelf: no ELF file\n\nhint: build it"),
        ("mortal", ["-w9"], 1, "error: the storage program 'mortal' died during the warm-up: exited with status 4\n"),
        (
            "quitter",
            ["-w2"],
            1,
            "error: the storage program 'quitter' died during the warm-up: the program exited with ",
        ),
        ("fdless", [], 1, "error: storage program 'fdless': cannot share memory: too many open files\n"),
        ("clingy", [], 1, "error: storage program 'clingy': cannot suspend the storage program: no memory\n"),
    ],
)
def test_a_storage_program_that_fails_ends_the_start(
    command: Command, name: str, options: list[str], code: int, error: str
) -> None:
    words = ["storage", command.program(name), "++", "run", command.program("server")]
    result = command.run(*options, *words)
    assert result.returncode == code
    assert error in result.stderr
    assert "Traceback" not in result.stderr
    assert "Program" not in result.stdout


def test_a_failed_warm_up_request_is_explained_by_the_death(command: Command) -> None:
    words = ["storage", command.program("quitter"), "++", "run", command.program("sick")]
    assert "died during the warm-up: the program exited with status 5\n" in command.run("-w9", *words).stderr
    words[1] = command.program("keeper")
    assert "warm-up request 3 of 9 (GET /) was answered with status 500\n" in command.run("-w9", *words).stderr


def test_a_failed_start_is_explained_by_the_death(command: Command) -> None:
    words = ["storage", command.program("quitter"), "++", "run", command.program("status7")]
    sentence = "error: the storage program 'quitter' died while program 'status7' started: the program exited with "
    assert sentence in command.run("-e", *words).stderr
    words[1] = command.program("keeper")
    assert "error: program 'status7' ended with status 7 before it listened\n" in command.run("-e", *words).stderr


def test_what_it_was_refused_before_it_failed_is_logged(command: Command) -> None:
    result = command.run("storage", command.program("status3"), "++", "run", command.program("server"))
    assert "warning storage program 'status3': the program may not connect to 10.0.0.1:6379\n" in result.stderr


@pytest.mark.parametrize(
    ("storage", "server", "code", "error"),
    [
        ("nosuch", "./server", 127, "error: cannot run the storage program 'nosuch': not found on PATH\n"),
        ("./plain", "./server", 126, "error: cannot run the storage program './plain': permission denied\n"),
        ("./server", "nosuch", 127, "error: cannot run 'nosuch': not found on PATH\n"),
    ],
)
def test_programs_that_cannot_be_run(command: Command, storage: str, server: str, code: int, error: str) -> None:
    command.program("server")
    (command.directory / "plain").write_text("")
    result = command.run("storage", storage, "++", "run", server)
    assert result.returncode == code
    assert result.stderr.startswith(error)


def lives(text: str) -> list[tuple[str, str, str]]:
    """(worker, what it did about the storage program, what was left of the first one there) of each worker's start."""
    return re.findall(r"worker (\d): the storage program (goes on|is started anew) \((\w+)\)", text)


def test_all_vms_share_one_worker_with_the_suspended_program(start_pair: Start) -> None:
    running = start_pair("-t", "5", "--vms-per-process", "2", "-e", "-w", "3")
    running.process.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    code, err = running.finish()
    assert code == 0
    assert lives(err) == [("0", "goes on", "suspended")]
    assert re.search(r"statistics workers=1 .* threads=5 storage\.calls=2 storage\.failed_calls=1\n", err)


def test_one_to_one_gives_the_first_program_to_nobody(start_pair: Start) -> None:
    running = start_pair("-t", "5", "--vms-per-process", "2", own=("--1-to-1",))
    time.sleep(0.3)
    code, err = running.finish()
    assert code == 0
    assert sorted(lives(err)) == [(number, "is started anew", "discarded") for number in "012"]


def test_a_restarted_worker_starts_the_program_anew(start_pair: Start) -> None:
    running = start_pair(server="suicide")
    time.sleep(1)
    assert lives(running.finish()[1])[:2] == [("0", "goes on", "suspended"), ("0", "is started anew", "discarded")]


def test_a_restarted_tenant_starts_it_without_a_line(start_pair: Start) -> None:
    running = start_pair()
    (tenant,) = psutil.Process(running.process.pid).children()
    tenant.kill()
    time.sleep(1.5)
    running.process.send_signal(signal.SIGTERM)
    out, err = running.process.communicate(timeout=30)
    assert (running.process.returncode, out) == (0, "")
    assert "program 'server' serves again" in err
    assert [line[1:] for line in lives(err)] == [("goes on", "suspended")] * 2


def test_a_program_that_is_no_server_may_call_it_too(command: Command) -> None:
    result = command.run("storage", command.program("keeper"), "++", "run", command.program("status7"))
    assert (result.returncode, result.stdout) == (7, "Storage VM initialized. init=416ms\n")


def test_each_gets_its_own_words_and_rights(command: Command) -> None:
    first, second = command.program("echo"), command.program("echo2")
    own = ["--env=A=1", "--allow-connect=127.0.0.1:6379", first, "++", "-e", "run"]
    result = command.run("--allow-all", "storage", *own, "++", "run", "--allow-listen=:80", second, "++", "run", "x")
    plan, run = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    storage = plan["sandbox"]
    assert (storage["arguments"], run["arguments"]) == (["++", "-e", "run"], ["++", "run", "x"])
    assert (storage["connect"], storage["listen"]) == ([{"address": "127.0.0.1", "port": 6379}], [])
    assert (run["connect"], run["listen"]) == ([], [{"address": None, "port": 80}])
    assert [sandbox["environment"].count(["A", "1"]) for sandbox in (storage, run)] == [1, 0]
    assert [sandbox["read"] for sandbox in (storage, run)] == [[], []]


def test_both_programs_of_the_file_are_started(command: Command) -> None:
    command.program("keeper")
    command.program("status7")
    text = '[storage]\nprogram = "./keeper"\n[run]\nprogram = "./status7"\n'
    (command.directory / "kvmserver.toml").write_text(text)
    result = command.run()
    assert (result.returncode, result.stdout) == (7, "Storage VM initialized. init=416ms\n")
