"""The command line: whose words are whose, and one sentence for every mistake."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kvmserver import cli
from kvmserver.options import BARE, ROWS

from .conftest import Command


def test_a_bare_grant_does_not_swallow_the_command() -> None:
    words = ["--allow-read", "run", "prog", "--allow-read", "x"]
    assert cli.mark_bare_grants(words) == [f"--allow-read={BARE}", "run", "prog", "--allow-read", "x"]


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        (["-e", "-t", "4", "--allow-net", "run"], 1),
        (["-et4", "--allow-net", "run"], 1),
        (["-et", "4", "--allow-net", "run"], 1),
        (["--env", "--allow-net", "run"], 0),
        (["--env=A=1", "--allow-net", "run"], 1),
        (["-c", "--allow-net", "run"], 0),
        (["--", "--allow-net"], 0),
        (["--allow-net=:80", "run", "--allow-net"], 0),
        (["-c"], 0),
    ],
)
def test_only_our_own_bare_grants_are_marked(words: list[str], marked: int) -> None:
    assert sum(BARE in word for word in cli.mark_bare_grants(words)) == marked


@given(st.lists(st.sampled_from(["--allow-read", "-e", "-t", "4", "--", "++", "run", "--env", "a", ""]), max_size=8))
def test_no_word_of_the_program_is_changed(arguments: list[str]) -> None:
    words = ["-e", "--allow-read", "run", "prog", *arguments]
    assert cli.mark_bare_grants(words)[2:] == words[2:]


@pytest.mark.parametrize(
    ("words", "own", "of_run"),
    [
        ("a ++ run b", "a", "b"),
        ("a x ++ y ++ run b ++ run c", "a x ++ y", "b ++ run c"),
        ("a ++ ++ run b", "a ++", "b"),
        ("--allow-read a ++ run", "--allow-read a", ""),
        ("++ run", "", ""),
        ("run a ++ runs", "run a ++ runs", None),
        ("a ++", "a ++", None),
        ("a run b", "a run b", None),
    ],
)
def test_the_storage_program_ends_at_the_first_separator_before_run(words: str, own: str, of_run: str | None) -> None:
    assert cli.split_at_run(words.split()) == (own.split(), None if of_run is None else of_run.split())


FORM = "\n\nhint: kvmserver [OPTIONS] storage [OPTIONS] PROGRAM [ARGS...] ++ run [OPTIONS] PROGRAM [ARGS...]\n"
EXCLUDE = "error: --allow-all (command line, {0}) and --allow-env (command line, {0}) exclude each other\n"
TOO_LATE = "error: {} comes too late\n\nhint: options of kvmserver come before 'storage'\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("storage", "error: 'storage' names no program" + FORM),
        ("storage ++ run b", "error: 'storage' names no program" + FORM),
        ("storage a", "error: the storage program 'a' is not followed by '++ run PROGRAM'" + FORM),
        ("storage a ++", "error: the storage program 'a' is not followed by '++ run PROGRAM'" + FORM),
        ("storage a run b", "error: the storage program 'a' is not followed by '++ run PROGRAM'" + FORM),
        ("storage a ++ run", "error: missing argument 'PROGRAM'\n"),
        ("storage -e a ++ run b", TOO_LATE.format("-e")),
        ("storage a ++ run --warmup 3 b", TOO_LATE.format("--warmup")),
        ("storage --max-storage-time 3 a ++ run b", TOO_LATE.format("--max-storage-time")),
        ("run --threads 3 b", "error: --threads comes too late\n\nhint: options of kvmserver come before 'run'\n"),
        ("--1-to-1 storage a ++ run b", "error: --1-to-1 is an option of storage\n\nhint: kvmserver storage --1-to-1 "),
        ("storage a ++ run --1-to-1 b", "error: --1-to-1 is an option of storage\n"),
        ("storage --allow-all --allow-env a ++ run b", EXCLUDE.format("storage")),
        ("storage a ++ run --allow-env=A --allow-all b", EXCLUDE.format("run")),
        (
            "storage --allow-net=:0 a ++ run b",
            "error: storage --allow-net: '0' in ':0' is not a port from 1 to 65535\n",
        ),
        (
            "storage --env A a ++ run --env B b",
            "error: storage --env: 'A' is not NAME=VALUE\nerror: run --env: 'B' is ",
        ),
        ("storage --cwd /no/where sh ++ run sh", "error: storage --cwd: '/no/where' is not a directory\n"),
        ("--cwd /no/where storage sh ++ run sh", "error: --cwd: '/no/where' is not a directory\n"),
        ("--volume nowhere:/x storage sh ++ run sh", "error: --volume: '"),
        ("run --allow-raed sh", "error: unknown option --allow-raed\n\nhint: did you mean --allow-read?\n"),
    ],
)
def test_mistakes_about_two_programs_are_one_sentence(command: Command, words: str, error: str) -> None:
    result = command.run(*words.split())
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(error)
    assert result.stderr.count("error: ") == error.count("error: ")


@pytest.mark.parametrize("words", [["run", "--help"], ["storage", "-h"], ["storage", "a", "++", "run", "--help"]])
def test_the_help_of_one_program_has_its_options_only(command: Command, words: list[str]) -> None:
    result = command.run(*words)
    assert result.returncode == 0
    assert "--allow-listen[=HOST,..]" in result.stdout
    assert ("--1-to-1" in result.stdout) is (words == ["storage", "-h"])
    assert "--warmup" not in result.stdout


def test_print_config_shows_both_programs(command: Command) -> None:
    (command.directory / "kvmserver.toml").write_text('[storage]\nprogram = "a"\ncwd = "/tmp"\n1-to-1 = true\n')
    words = "--print-config --allow-all run --allow-listen=:8000 --allow-env b -x"
    lines = [" ".join(line.split()) for line in command.run(*words.split()).stdout.splitlines()]
    both, storage, run = "\n".join(lines).split("\n\n")
    assert "allow-all = true # command line\n" in both
    for line in (
        "[storage] # kvmserver.toml",
        'program = "a"',
        "1-to-1 = true # kvmserver.toml, [storage]",
        'cwd = "/tmp" # kvmserver.toml, [storage]',
        "# allow-all = true # command line",
    ):
        assert line in storage.splitlines()
    for line in (
        "[run] # command line",
        'args = ["-x"]',
        "allow-all = false # command line, run",
        'allow-listen = [":8000"] # command line, run',
        "allow-env = true # command line, run",
        "# allow-read = false # default",
    ):
        assert line in run.splitlines()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([], 2, "error: no program to run\n\nhint: kvmserver [OPTIONS] run PROGRAM"),
        (["run"], 2, "error: missing argument 'PROGRAM'\n"),
        (["run", "nosuch"], 127, "error: cannot run 'nosuch': not found on PATH\n"),
        (["run", "-e", "x"], 2, "error: -e comes too late\n\nhint: options of kvmserver come before 'run'\n"),
        (["--warmpu", "3", "run", "x"], 2, "error: unknown option --warmpu\n\nhint: did you mean --warmup?\n"),
        (["--xyzzy"], 2, "error: unknown option --xyzzy\n"),
        (["wibble"], 2, "error: no such command 'wibble'\n"),
        (["-t"], 2, "error: option '-t' requires an argument\n"),
        (["-t", "many", "run", "x"], 2, "error: --threads: 'many' is not a whole number\n"),
        (["-t", "1025", "run", "x"], 2, "error: --threads: 1025 is out of range: 0 to 1024\n"),
        (["--allow-read=", "run", "x"], 2, "error: --allow-read: the list is empty"),
        (["--allow-env=", "run", "x"], 2, "error: --allow-env: the list is empty"),
        (["--allow-all", "--allow-read", "run", "x"], 2, "error: --allow-all (command line) and --allow-read"),
        (["--env", "A", "run", "x"], 2, "error: --env: 'A' is not NAME=VALUE\n"),
        (["-c", "missing.toml", "run", "x"], 2, "error: cannot read missing.toml: no such file or directory\n"),
        (["--cwd", "/no/where", "run", "sh"], 2, "error: --cwd: '/no/where' is not a directory\n"),
        (["demo", "--port", "70000"], 2, "error: "),
    ],
)
def test_mistakes_are_one_sentence(command: Command, words: list[str], code: int, error: str) -> None:
    result = command.run(*words)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(error)
    assert "Traceback" not in result.stderr


def test_print_config_starts_nothing(command: Command) -> None:
    (command.directory / "kvmserver.toml").write_text("hot-pages = 7\n")
    result = command.run("--print-config", "-t", "3", "--allow-read", "run", "no-such-program", "-x")
    assert result.returncode == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "threads = 3 # command line" in lines
    assert "hot-pages = 7 # kvmserver.toml" in lines
    assert "allow-read = true # command line" in lines
    assert '# max-boot-time = "20s" # default' in lines
    assert 'args = ["-x"]' in lines


def test_flags_of_the_file_can_be_switched_off(command: Command) -> None:
    (command.directory / "kvmserver.toml").write_text("ephemeral = true\n")
    assert "ephemeral = false" in command.run("--no-ephemeral", "--print-config").stdout


def test_help_lists_every_option_in_its_group() -> None:
    result = CliRunner().invoke(cli.command_line, ["--help"])
    assert result.exit_code == 0
    for row in ROWS:
        assert cli.option_words(row) in result.output
    for word in ("-c, --config FILE", "--print-config", "-V, --version", "storage PROGRAM", "run", "demo", "doctor"):
        assert word in result.output


def test_version(command: Command) -> None:
    for option in ("-V", "--version"):
        result = command.run(option)
        assert result.stdout.startswith("kvmserver ")
        assert result.stdout.count("\n") == 1


def test_the_module_is_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--nope"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown option --nope")
