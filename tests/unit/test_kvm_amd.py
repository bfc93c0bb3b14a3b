"""scripts/kvm-amd without a machine: the messages, the shared directory, what is kept, and starts that hang."""

import contextlib
import fcntl
import io
import os
import re
import select
import shutil
import signal
import struct
import tarfile
import termios
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_amd import agent, cache, command, frames, image, machine, project, share
from kvm_amd.agent import Start
from kvm_amd.frames import BrokenStreamError, Decoder, Kind, encode

SCRIPTS = Path(project.ROOT, "scripts")


@given(
    st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=300))),
    st.integers(min_value=1, max_value=64),
)
def test_messages_are_whole_however_they_arrive(messages: list[tuple[Kind, bytes]], size: int) -> None:
    stream = b"".join(encode(*message) for message in messages)
    decoder = Decoder()
    received = [message for at in range(0, len(stream), size) for message in decoder.feed(stream[at : at + size])]
    assert received == messages


@pytest.mark.parametrize("header", [frames.HEADER.pack(99, 0), frames.HEADER.pack(Kind.OUTPUT, frames.PAYLOAD_MAX + 1)])
def test_what_is_no_message_is_refused(header: bytes) -> None:
    with pytest.raises(BrokenStreamError):
        Decoder().feed(header)
    with pytest.raises(ValueError, match="at most"):
        encode(Kind.OUTPUT, bytes(frames.PAYLOAD_MAX + 1))


def archive_of(directory: Path) -> io.BytesIO:
    pieces: list[bytes] = []
    share.send(directory, pieces.append)
    assert pieces[-1] == b""
    assert all(len(piece) <= frames.PAYLOAD_MAX for piece in pieces)
    return io.BytesIO(b"".join(pieces))


def test_a_directory_comes_over_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "program").write_bytes(os.urandom(200_000))
    (source / "deep" / "program").chmod(0o750)
    (source / "again").hardlink_to(source / "deep" / "program")
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    (target / "gone").mkdir(parents=True)
    (target / "gone" / "file").touch()
    (target / "link").mkdir()
    share.receive(archive_of(source), target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        "again",
        "deep",
        "deep/er",
        "deep/program",
        "link",
    ]
    assert (target / "deep" / "program").read_bytes() == (source / "deep" / "program").read_bytes()
    assert (target / "deep" / "program").stat().st_mode & 0o777 == 0o750
    assert (target / "again").samefile(target / "deep" / "program")
    assert (target / "link").readlink() == Path("nowhere")


def test_a_file_that_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    archive = archive_of(tmp_path)
    before = (tmp_path / "one").stat()
    (tmp_path / "two").write_text("changed")
    share.receive(archive, tmp_path)
    assert (tmp_path / "one").stat().st_ctime_ns == before.st_ctime_ns
    assert (tmp_path / "two").read_text() == "2"


def hostile(*members: tarfile.TarInfo) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.size = 1 if kind == tarfile.REGTYPE else 0
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("/outside")],
        [member("a", tarfile.SYMTYPE, ".."), member("a/outside")],
        [member("a", tarfile.LNKTYPE, "../secret")],
        [member("a", tarfile.CHRTYPE)],
    ],
)
def test_a_stream_that_leads_outside_is_refused(members: list[tarfile.TarInfo], tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    directory = tmp_path / "shared"
    directory.mkdir()
    with pytest.raises(tarfile.ExtractError):
        share.receive(hostile(*members), directory)
    assert not (tmp_path / "outside").exists()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache.root()


def test_what_was_made_is_kept_and_what_failed_is_not(place: Path) -> None:
    built: list[str] = []

    def build(directory: Path) -> None:
        built.append(directory.name)
        (directory / "content").write_text(str(len(built)))
        if len(built) == 1:
            raise image.BuildError("no")

    with pytest.raises(image.BuildError):
        cache.get("thing", "key", build)
    assert list(place.glob("*thing-*")) == []
    for rebuild, content in ((False, "2"), (False, "2"), (True, "3")):
        assert (cache.get("thing", "key", build, rebuild) / "content").read_text() == content


def test_only_the_last_few_are_kept(place: Path) -> None:
    for number in range(cache.KEPT + 2):
        os.utime(cache.get("thing", str(number), Path.touch), (number, number))
    assert len(list(place.glob("thing-*"))) == cache.KEPT
    assert not (place / "thing-0").exists()


def test_a_hash_of_files_sees_names_content_and_mode(tmp_path: Path) -> None:
    def now() -> str:
        return cache.digest_of_files(tmp_path, ["a", "b", "missing"])

    hashes = [now()]
    for change in (
        lambda: (tmp_path / "a").write_text("x"),
        lambda: (tmp_path / "a").write_text("y"),
        lambda: (tmp_path / "a").chmod(0o755),
        lambda: (tmp_path / "a").rename(tmp_path / "b"),
        lambda: (tmp_path / "a").symlink_to("b"),
    ):
        change()
        hashes.append(now())
    assert len(set(hashes)) == len(hashes)
    assert cache.digest([b"ab", b"c"]) != cache.digest([b"a", b"bc"])


def test_the_machine_gets_the_run_time_and_the_core_test_packages() -> None:
    needed = project.requirements((project.ROOT / "pyproject.toml").read_text())
    names = [requirement.split(">")[0] for requirement in needed]
    assert {"click", "psutil", "pytest", "pytest-timeout", "hypothesis"} <= set(names)
    assert not {"deno", "mypy", "ruff"} & set(names)


def test_an_image_is_made_anew_when_the_way_to_make_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [image.key()]
    for name in ("RECIPE", "HOOK"):
        copy = tmp_path / name
        copy.write_bytes(getattr(image, name).read_bytes())
        monkeypatch.setattr(image, name, copy)
        assert image.key() == keys[-1]
        copy.write_text(copy.read_text() + "# changed\n")
        keys.append(image.key())
    assert len(set(keys)) == 3
    assert "--variant=" in Path(image.RECIPE).read_text(), "where mmdebstrap's options are"


def test_missing_packages_are_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mmdebstrap" else name)
    with pytest.raises(image.MissingPackagesError, match=r"^missing here: mmdebstrap \(apt-get install .*\)$"):
        image.check_tools()


def test_only_users_need_what_makes_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "newuidmap" else name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    image.check_tools()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(image.MissingPackagesError, match=r"^missing here: uidmap \("):
        image.check_tools()


@pytest.mark.parametrize(
    "words", [[], ["--shell", "--", "true"], ["--share", "/no/such", "--", "true"], ["--env", "A", "--", "true"]]
)
def test_a_command_line_that_makes_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(words)
    assert ended.value.code == 2


def test_what_a_command_line_asks_for(tmp_path: Path) -> None:
    options = command.parse(["--env", "A=b=c", "--share", str(tmp_path), "--", "sh", "-c", "--", "x"])
    start = command.start_of(options)
    assert (start.command, start.directory, start.shared) == (["sh", "-c", "--", "x"], "/share", True)
    assert start.environment["A"] == "b=c"
    assert command.start_of(command.parse(["--", "true"])).directory == "/usr/local/share/kvmserver"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose file ``hangs`` tells how many starts of QEMU do nothing before one works."""
    directory = tmp_path / "fake"
    directory.mkdir()
    shutil.copy(Path(__file__).with_name("fake_qemu.py"), directory / "qemu-system-x86_64")
    (directory / "qemu-system-x86_64").chmod(0o755)
    (directory / "scripts").write_text(str(SCRIPTS))
    (directory / "hangs").write_text("0")
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "FIRST_LINE_S", 5.0)
    return directory


def run(words: list[str], shared: Path | None = None, limit_s: float = 60.0) -> machine.Outcome:
    start = Start(words, "/", {"PATH": os.defpath}, False, shared is not None)
    return machine.run(image.Image(Path("kernel"), Path("disk")), Path("project"), start, shared, limit_s)


def test_what_the_kernel_says_meanwhile_comes_back(fake: Path) -> None:
    outcome = run(["sh", "-c", "echo 'WARNING: at kvm' >> /proc/$PPID/fd/1; exit 3"])
    assert (outcome.status, outcome.kernel_log) == (3, "WARNING: at kvm")
    assert run(["true"]).kernel_log == ""


def test_a_command_never_runs_on_the_first_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _process, processors: asked.append(set(processors)))
    agent.leave_first_processor()
    assert asked == [{1, 2}]


def test_output_and_status_come_back(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # What a process that stays behind holds open is not waited for.
    outcome = run(["sh", "-c", "cat; echo out; echo error >&2; sleep 600 & exit 7"])
    assert outcome.status == 7
    assert capfd.readouterr() == ("out\n", "error\n")


def test_much_output_comes_back_whole(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["sh", "-c", "seq 200000"]).status == 0
    assert capfd.readouterr().out == "".join(f"{number}\n" for number in range(1, 200001))


@pytest.mark.parametrize(
    ("words", "status"), [(["sh", "-c", "kill -9 $$"], 137), (["/no/such"], 127), (["/etc/passwd"], 126)]
)
def test_a_death_is_told_as_a_shell_tells_it(words: list[str], status: int, fake: Path) -> None:
    assert run(words).status == status


def test_a_shared_directory_comes_back_changed(fake: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "old").write_text("content")
    assert run(["sh", "-c", f"cd {fake}/share && mv old new && echo more >> new"], shared).status == 0
    assert {path.name: path.read_text() for path in shared.iterdir()} == {"new": "contentmore\n"}


def test_a_start_that_hangs_is_told_and_tried_again(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "FIRST_LINE_S", 2.0)
    (fake / "hangs").write_text("1")
    assert run(["true"]).status == 0
    assert capfd.readouterr().err == "kvm-amd: start 1 of 5 hung before the kernel printed\n"


def test_it_gives_up_when_no_start_works(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FIRST_LINE_S", 0.2)
    (fake / "hangs").write_text("99")
    with pytest.raises(machine.MachineError, match="no start of 5 came up"):
        run(["true"])


def test_a_command_that_does_not_end_is_ended(fake: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(machine.TimeLimitError):
        run(["sleep", "600"], limit_s=0.5)
    assert time.monotonic() - begin < 30


def test_a_machine_that_dies_is_told_with_its_last_words(fake: Path) -> None:
    with pytest.raises(machine.MachineError, match=r"(?s)ended before the command did.*Linux version"):
        run(["sh", "-c", "kill -9 $PPID"])


@pytest.fixture
def kvm_amd(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command line over the pretended QEMU, whose commands run in /usr/local, as ordinary processes."""
    monkeypatch.setattr(image, "check_tools", lambda: None)
    monkeypatch.setattr(image, "get", lambda _rebuild: image.Image(Path("kernel"), Path("disk")))
    monkeypatch.setattr(project, "get", lambda: Path("project"))
    monkeypatch.setattr(project, "TREE_AT", ".")
    return fake


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--", "sh", "-c", "exit 7"], 7, ""),
        (["--time-limit", "0.5", "--", "sleep", "600"], 124, "kvm-amd: the command was ended after 0.5 s\n"),
        (["--start-limit", "60", "--", "true"], 0, ""),
    ],
)
def test_the_exit_status_is_the_commands_or_tells_of_the_time_limit(
    words: list[str], status: int, says: str, kvm_amd: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == status
    assert capfd.readouterr() == ("", says)


def test_a_machine_that_failed_is_125_and_the_end_of_its_console(
    kvm_amd: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--", "sh", "-c", "kill -9 $PPID"]) == 125
    assert capfd.readouterr().err == "kvm-amd: the machine ended before the command did:\nLinux version\n"


@pytest.mark.parametrize(
    "error", [image.MissingPackagesError("missing here: x"), image.BuildError("pip ended with 1:\nno")]
)
def test_a_machine_that_cannot_be_made_is_125(
    error: Exception, kvm_amd: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(project, "get", fail)
    assert command.main(["--", "true"]) == 125
    assert capfd.readouterr().err == f"kvm-amd: {error}\n"


def test_a_slow_start_is_123_where_the_command_did_not_fail(kvm_amd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--start-limit", "0", "--", "echo", "done"]) == 123
    out, err = capfd.readouterr()
    assert out == "done\n"
    assert re.fullmatch(r"kvm-amd: the machine took \d+\.\d s to start, more than 0 s: give it idle CPUs\n", err), err
    assert command.main(["--start-limit", "0", "--", "sh", "-c", "exit 7"]) == 7


def test_the_time_of_the_start_is_told_and_without_the_starts_that_hung(
    kvm_amd: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # As long as a start may be silent: what came up did so within that, and the one that hung did not.
    monkeypatch.setattr(machine, "FIRST_LINE_S", 2.0)
    (kvm_amd / "hangs").write_text("1")
    assert command.main(["--verbose", "--start-limit", "2", "--", "true"]) == 0
    hung, told = capfd.readouterr().err.splitlines()
    assert hung == "kvm-amd: start 1 of 5 hung before the kernel printed"
    assert re.fullmatch(r"kvm-amd: \d+\.\d s from start to command", told), told


def test_what_the_kernel_says_is_shown_where_the_command_fails(
    kvm_amd: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "echo 'WARNING: at kvm' >> /proc/$PPID/fd/1; exit"
    assert command.main(["--", "sh", "-c", f"{script} 3"]) == 3
    assert capfd.readouterr().err == "kvm-amd: meanwhile the machine's kernel printed:\nWARNING: at kvm\n"
    assert command.main(["--", "sh", "-c", f"{script} 0"]) == 0
    assert capfd.readouterr().err == ""


class Terminal:
    """A process on a terminal of its own, and what it has shown so far."""

    def __init__(self, words: list[str]) -> None:
        self._ours, self._theirs = os.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        self.modes = termios.tcgetattr(self._theirs)
        self._shown = ""
        self.process = os.fork()
        if self.process == 0:
            status = 99
            try:
                # Where the test ends early, nobody holds this side, and that ends the process.
                os.close(self._ours)
                # Who runs in the background of a script ignores it, and so would all that is started here.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.login_tty(self._theirs)
                status = command.main(words)
            finally:
                os._exit(status)

    def fileno(self) -> int:
        """The side that the process has."""
        return self._theirs

    def wait_for(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self._shown:
            assert select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))[0], self._shown
            self._shown += os.read(self._ours, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> tuple[int, bool]:
        """The exit status, and whether the terminal's modes are what they were."""
        reader = threading.Thread(target=self._drain, daemon=True)
        reader.start()
        _, status = os.waitpid(self.process, 0)
        restored = termios.tcgetattr(self._theirs) == self.modes
        os.close(self._theirs)
        reader.join()
        os.close(self._ours)
        return os.waitstatus_to_exitcode(status), restored

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._ours, 4096):
                pass


def test_a_shell_has_this_terminal_with_its_size_and_its_keys(kvm_amd: Path) -> None:
    # What is typed is shown, too: what is waited for is nothing that was typed. What is typed before is lost.
    terminal = Terminal(["--shell", "--env", "PROMPT_COMMAND=echo prompt-$((3+4))"])
    terminal.wait_for("prompt-7")
    terminal.type("stty size\r")
    terminal.wait_for("33 101")
    terminal.type(
        "sh -c 'trap \"echo caught-\\$((1+1)); exit\" INT; echo armed-$((2+3)); while :; do sleep 0.1; done'\r"
    )
    terminal.wait_for("armed-5")
    assert termios.tcgetattr(terminal.fileno()) != terminal.modes
    terminal.type("\x03")
    terminal.wait_for("caught-2")
    terminal.type("exit 5\r")
    assert terminal.end() == (5, True)
