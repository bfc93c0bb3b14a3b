"""The effective configuration: every option has a key, the command line wins, all mistakes come at once."""

import tomllib
from pathlib import Path

import pytest

from kvmserver import config, config_text
from kvmserver.config import Config, Given, ProgramConfig
from kvmserver.errors import ConfigError, KvmserverError
from kvmserver.options import BARE, ROWS, Kind, Row, to_toml
from kvmserver.permissions import Volume
from kvmserver.warmup import WarmupRequest

CommandLine = dict[str, "bool | list[str]"]


def load(directory: Path, text: str = "", command_line: CommandLine | None = None) -> Config:
    (directory / "kvmserver.toml").write_text(text)
    return config.load(command_line or {})


def problems(directory: Path, text: str, command_line: CommandLine | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, text, command_line)
    return caught.value.problems


def words_of(program: ProgramConfig | None) -> tuple[str, tuple[str, ...]]:
    assert program is not None
    return program.program, program.arguments


def test_defaults(directory: Path) -> None:
    merged = config.load({})
    options = merged.options
    assert (options.max_boot_time, options.max_request_time) == (20 * 10**9, 8 * 10**9)
    assert (options.max_main_memory, options.max_address_space) == (8192 << 20, 120 << 30)
    assert (options.max_request_memory, options.limit_request_memory) == (128 << 20, 128 << 20)
    assert (options.hot_pages, options.vms_per_process, merged.threads, merged.warmup_count) == (1024, 32, 1, 0)
    assert not merged.server_expected
    assert set(merged.origins.values()) == {"default"}


EXAMPLES = {
    Kind.FLAG: "true",
    Kind.COUNT: "7",
    Kind.DURATION: '"250ms"',
    Kind.SIZE: '"256MiB"',
    Kind.GRANT: '["a", "b"]',
}
LISTS = {"env": '["A=1"]', "volume": '["/tmp:/t:rw"]', "warmup-request": '["GET /"]', "cwd": '"/tmp"'}
LISTS |= {"listen": '["tcp:localhost:80", "unix:/run/a"]', "protocol": '"tcp"', "max-header-size": '"128KiB"'}
LISTS |= {"fast-path": "false"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_option_has_a_key_in_the_file(row: Row, directory: Path) -> None:
    example = LISTS.get(row.name) or EXAMPLES[row.opt.kind]
    merged = load(directory, f"{row.name} = {example}")
    assert getattr(merged.options, row.field) != row.default
    assert merged.origins[row.name] == "kvmserver.toml"


def test_command_line_beats_file(directory: Path) -> None:
    merged = load(directory, "threads = 2\nwarmup = 3\nephemeral = true", {"threads": ["4"], "ephemeral": False})
    assert (merged.threads, merged.warmup_count, merged.options.ephemeral) == (4, 3, False)
    assert (merged.origins["threads"], merged.origins["warmup"]) == ("command line", "kvmserver.toml")


def test_bare_numbers_are_seconds_and_mebibytes(directory: Path) -> None:
    merged = load(directory, "max-request-time = 1.5\nmax-main-memory = 64")
    assert (merged.options.max_request_time, merged.options.max_main_memory) == (1_500_000_000, 64 << 20)


def test_all_mistakes_are_reported_at_once_with_file_and_key(directory: Path) -> None:
    text = 'thread = 2\nmax-boot-time = "fast"\nvolume = ["x"]\nwibble = 1\n[run]\nargs = []\nprog = "x"\n'
    found = problems(directory, text, {"threads": ["x"], "allow-read": [""]})
    assert sorted(line.split(":")[0:2] for line in found) == sorted(
        [
            ["kvmserver.toml", " thread"],
            ["kvmserver.toml", " wibble"],
            ["kvmserver.toml", " run.program"],
            ["kvmserver.toml", " run.prog"],
            ["kvmserver.toml", " max-boot-time"],
            ["kvmserver.toml", " volume"],
            ["--allow-read", " the list is empty or has an empty element (leave out '=' to allow everything)"],
            ["--threads", " 'x' is not a whole number"],
        ]
    )
    assert any("did you mean threads?" in line for line in found)


def test_keys_with_underscores_are_unknown_and_corrected(directory: Path) -> None:
    assert problems(directory, "max_boot_time = 3") == [
        "kvmserver.toml: max_boot_time: unknown key (did you mean max-boot-time?)"
    ]


IMPOSSIBLE = (
    "threads = -1",
    "threads = 1025",
    "threads = 1.5",
    "threads = true",
    'threads = "x"',
    "ephemeral = 1",
    "cwd = 3",
    'allow-read = [""]',
    "allow-read = [1]",
    "allow-read = 1",
    'env = ["A"]',
    "env = { A = 1 }",
    "env = 3",
    'max-boot-time = "0s"',
    "vms-per-process = 0",
    'volume = [{ host = "x" }]',
    'warmup-request = ["GET"]',
    "max-main-memory = 99999999",
    "warmup = -1",
    'run = "x"',
    '[run]\nprogram = ""',
    "[storage]",
    "storage = 1",
    '[storage]\nprogram = "x"\nargs = [1]',
    '[storage]\nprogram = "x"\n1-to-1 = "yes"',
    '[storage]\nprogram = "x"\nallow-read = 1',
    '[run]\nprogram = "x"\nallow-all = true\nallow-write = true',
    "[[warmup]]\npath = 3",
    "[[warmup]]\nstatus = 99",
    "[[warmup]]\nwhat = 1",
    "allow-all = true\nallow-read = true",
    "warmup = 1\nwarmup-count = 1",
    'warmup-request = ["GET /"]\n[[warmup]]\npath = "/"',
    'allow-net = ["a:b"]',
    'max-main-memory = "1GiB"\nmax-address-space = "512MiB"',
    'allow-env = ["A*B"]',
    "max-boot-time = nan",
)


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_impossible_values_are_errors(text: str, directory: Path) -> None:
    assert problems(directory, text)


def test_a_broken_file_is_one_clear_error(directory: Path) -> None:
    assert problems(directory, "threads =")[0].startswith("kvmserver.toml: not valid TOML:")


def test_an_explicit_file_must_exist(directory: Path) -> None:
    with pytest.raises(KvmserverError, match=r"cannot read other.toml: no such file or directory"):
        config.load({}, Path("other.toml"))


def test_a_run_table_makes_the_program(directory: Path) -> None:
    merged = load(directory, '[run]\nprogram = "deno"\nargs = ["run", "++", "-e"]')
    assert words_of(merged.run) == ("deno", ("run", "++", "-e"))
    assert words_of(config.load({}, None, Given("python3", ["x"])).run) == ("python3", ("x",))
    assert load(directory).programs == ()


def test_warmup_tables(directory: Path) -> None:
    table = '[[warmup]]\nmethod = "POST"\npath = "/r"\nheaders = { A = "b" }\nbody = "x"\nstatus = 201\n[[warmup]]\n'
    expected = (WarmupRequest("POST", "/r", {"A": "b"}, "x", 201), WarmupRequest())
    merged = load(directory, table)
    assert merged.warmup_requests == expected
    assert merged.warmup_count == 2
    assert load(directory, "warmup-count = 9\n" + table).warmup_count == 9
    assert load(directory, table, {"warmup": ["5"]}).warmup_count == 5
    assert load(directory, table, {"warmup-request": ["GET /z"]}).warmup_requests == (WarmupRequest(path="/z"),)


def test_a_server_is_expected_when_one_is_asked_for(directory: Path) -> None:
    assert config.load({"ephemeral": True}).server_expected
    assert config.load({"warmup": ["1"]}).server_expected
    assert config.load({"threads": ["1"]}).server_expected
    assert not config.load({"allow-all": True, "verbose": True}).server_expected


def test_zero_threads_means_one_for_each_cpu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert config.load({"threads": ["0"]}).threads == 3


def test_grants_of_the_command_line(directory: Path) -> None:
    grants: CommandLine = {"allow-read": ["/a,/b", "c"], "allow-write": [BARE], "allow-net": [BARE, "x"]}
    options = config.load(grants).options
    assert (options.allow_read, options.allow_write, options.allow_net) == (("/a", "/b", "c"), True, True)


def test_an_empty_list_in_the_file_grants_nothing(directory: Path) -> None:
    assert load(directory, "allow-read = []").options.allow_read is False


def test_env_and_volumes_as_tables(directory: Path) -> None:
    options = load(directory, 'volume = [{ host = "a", guest = "/b", write = true }]\n[env]\nA = "1=2"').options
    assert options.volume == (Volume("a", "/b", True),)
    assert options.env == (("A", "1=2"),)


def test_the_printed_configuration_reads_back_as_the_same(directory: Path) -> None:
    text = (
        'threads = 3\nenv = ["A=\\u007f\\n\\"ü"]\nallow-read = true\nmax-boot-time = "250ms"\ncwd = "/tmp"\n'
        'volume = ["/tmp:/t:rw"]\nwarmup-count = 7\nwarmup-request = ["GET /a", "POST /b"]\n'
        '[run]\nprogram = "deno"\nargs = ["a b", ""]\n'
    )
    before = load(directory, text)
    printed = config_text.as_toml(before)
    after = load(directory, printed)
    assert after.options == before.options
    assert words_of(after.run) == words_of(before.run)
    assert after.server_expected == before.server_expected
    for row in ROWS:
        line = next(line for line in printed.splitlines() if line.removeprefix("# ").startswith(f"{row.name} = "))
        assert line.endswith(f"# {before.origins[row.name]}")


def test_printed_warmup_tables_read_back(directory: Path) -> None:
    before = load(
        directory, 'warmup-count = 3\n[[warmup]]\npath = "/a"\nheaders = { A = "b" }\nbody = "x"\nstatus = 404'
    )
    assert load(directory, config_text.as_toml(before)).warmup_requests == before.warmup_requests


def test_every_default_reads_back_from_its_toml_form(directory: Path) -> None:
    for row in ROWS:
        text = f"{row.name} = {to_toml(row, row.default)}"
        assert tomllib.loads(text)
        assert getattr(load(directory, text).options, row.field) == row.default


Layers = tuple[str, str, str, str]


def given_words(text: str) -> CommandLine:
    """``"allow-all allow-read=/a"`` as click collects it."""
    found: CommandLine = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        found[name] = [value] if equals else True
    return found


# The top of the file, its table, the command line in front of the command, and after it; then what is in force.
LAYERS: list[tuple[Layers, dict[str, object]]] = [
    (("", "", "allow-read=/a", ""), {"allow-read": ("/a",)}),
    (("", "", "allow-read=/a", "allow-read=/b"), {"allow-read": ("/b",)}),
    (("", "", "allow-read=/a", "allow-write=/b"), {"allow-read": ("/a",), "allow-write": ("/b",)}),
    (("", "", "allow-all", "allow-listen=:80"), {"allow-listen": (":80",)}),
    (("", "", "allow-all", "env=A=1 cwd=/tmp volume=/a:/b"), {"allow-all": True, "cwd": "/tmp"}),
    (("", "", "allow-read=/a allow-net=:80", "allow-all"), {"allow-all": True}),
    (("allow-all = true", "", "", "allow-env=A"), {"allow-env": ("A",)}),
    (("allow-all = true", "allow-read = false", "", ""), {}),
    (("allow-all = true", "allow-read = ['/t']", "allow-all", ""), {"allow-all": True}),
    (("allow-read = ['/f']", "allow-read = ['/t']", "", ""), {"allow-read": ("/t",)}),
    (("allow-read = ['/f']", "allow-read = ['/t']", "allow-read=/c", ""), {"allow-read": ("/c",)}),
    (("allow-read = ['/f']", "allow-all = true", "", ""), {"allow-all": True}),
    (("", "allow-all = true", "allow-read=/c", ""), {"allow-read": ("/c",)}),
    (("", "allow-all = true", "", "allow-read=/w"), {"allow-read": ("/w",)}),
    (("", "env = ['A=1', 'B=2']", "", "env=C=3"), {"env": (("C", "3"),)}),
]
OWN = (
    "allow-all",
    "allow-read",
    "allow-write",
    "allow-env",
    "allow-net",
    "allow-connect",
    "allow-listen",
    "cwd",
    "env",
)


@pytest.mark.parametrize(("layers", "expected"), LAYERS)
@pytest.mark.parametrize("role", config.ROLES)
def test_what_is_said_about_one_program_is_in_force_for_it_alone(
    role: config.Role, layers: Layers, expected: dict[str, object], directory: Path
) -> None:
    top, table, front, after = layers
    other = "run" if role == "storage" else "storage"
    text = f'{top}\n[{role}]\nprogram = "a"\n{table}\n[{other}]\nprogram = "b"\n'
    (directory / "kvmserver.toml").write_text(text)
    given = {role: Given("c", (), given_words(after))} if after else {}
    merged = config.load(given_words(front), run=given.get("run"), storage=given.get("storage"))
    program = getattr(merged, role)
    values = {name: getattr(program.options, name.replace("-", "_")) for name in OWN}
    if "cwd" in expected:
        assert program.options.volume == (Volume("/a", "/b", False),)
        expected = {**expected, "env": (("A", "1"),)}
    defaults = {row.name: row.default for row in ROWS if row.name in OWN}
    assert values == defaults | expected
    # Nothing of it reaches the other program, for which the options of both are in force.
    assert getattr(merged, other).options == merged.options

    printed = load(directory, config_text.as_toml(merged))
    assert getattr(printed, role).options == program.options
    assert getattr(printed, other).options == merged.options


def test_the_origin_of_a_grant_that_no_longer_applies_is_who_narrowed_it(directory: Path) -> None:
    run = config.load({"allow-all": True}, run=Given("a", (), {"allow-read": ["/a"]})).run
    assert run is not None
    assert (run.origins["allow-all"], run.origins["allow-read"]) == ("command line, run", "command line, run")
    assert run.own == {"allow-all", "allow-read"}
    assert (run.label("allow-read"), run.label("env")) == ("run --allow-read", "--env")


def test_a_storage_table(directory: Path) -> None:
    text = '[storage]\nprogram = "redis"\nargs = ["++"]\n1-to-1 = true\nallow-connect = [":1"]\nenv = { A = "1" }\n'
    merged = load(directory, text)
    assert words_of(merged.storage) == ("redis", ("++",))
    assert merged.storage is not None
    assert merged.storage.one_to_one
    assert merged.storage.options.env == (("A", "1"),)
    assert merged.run is None
    merged = config.load({}, storage=Given("other", (), {}, one_to_one=False))
    assert words_of(merged.storage) == ("other", ())
    assert merged.storage is not None
    assert not merged.storage.one_to_one
    assert merged.storage.options.allow_connect == (":1",)


def test_mistakes_in_tables_are_told_with_their_place(directory: Path) -> None:
    text = '[storage]\nprogram = "x"\nthreads = 3\nallow-raed = true\ncwd = 1\n[run]\nprogram = "x"\n1-to-1 = true\n'
    assert problems(directory, text) == [
        "kvmserver.toml: storage.threads: is no option of one program; it belongs above the tables",
        "kvmserver.toml: storage.allow-raed: unknown key (did you mean allow-read?)",
        "kvmserver.toml: storage.cwd: must be a text that is not empty and has no NUL byte",
        "kvmserver.toml: run.1-to-1: unknown key",
    ]
    assert problems(directory, '[run]\nprogram = "x"\nallow-all = true\nallow-env = true\n') == [
        "--allow-all (kvmserver.toml, [run]) and --allow-env (kvmserver.toml, [run]) exclude each other"
    ]


def test_tcp_and_warmup_exclude_each_other(directory: Path) -> None:
    with pytest.raises(ConfigError, match="warm-up requests are HTTP"):
        load(directory, 'protocol = "tcp"\nwarmup = 3')
    assert load(directory, 'protocol = "tcp"').options.protocol == "tcp"
