"""One effective configuration out of kvmserver.toml and the command line, with the origin of every value.

The command line beats the file, option by option; what is said about one program beats what is said about both. All
mistakes of both places are reported at once.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from kvmserver.errors import ConfigError, KvmserverError
from kvmserver.options import ONE_TO_ONE, PROGRAM_ROWS, ROW_OF_NAME, Options
from kvmserver.sources import COMMAND_LINE, DEFAULT, Source, exclusions, in_force, problems_of
from kvmserver.warmup import DEFAULT_REQUESTS, WarmupRequest, check_request

DEFAULT_FILE = "kvmserver.toml"

Role = Literal["storage", "run"]
ROLES: tuple[Role, ...] = ("storage", "run")

_TABLES = (*ROLES, "warmup", "warmup-count")
_PROGRAM_OPTIONS = tuple(row.name for row in PROGRAM_ROWS)
_WORDS_OF_TABLE: dict[Role, tuple[str, ...]] = {
    "storage": ("program", "args", ONE_TO_ONE.name),
    "run": ("program", "args"),
}


@dataclass(frozen=True)
class Given:
    """What the command line says about one program: its words, and what stands between the command and them."""

    program: str
    arguments: Sequence[str] = ()
    options: Mapping[str, bool | Sequence[str]] = field(default_factory=dict)
    one_to_one: bool | None = None


@dataclass(frozen=True)
class ProgramConfig:
    """One of the two programs: its words, and the options in force for it alone.

    ``origin`` is where its words come from; ``origins`` tells the same of its options, ``own`` names those that were
    set for this program and not for both.
    """

    role: Role
    program: str
    arguments: tuple[str, ...]
    origin: str
    options: Options
    origins: Mapping[str, str]
    own: frozenset[str] = frozenset()
    one_to_one: bool = False

    def label(self, name: str) -> str:
        """The option as messages call it."""
        return f"{self.role} --{name}" if name in self.own else f"--{name}"


@dataclass(frozen=True)
class Config:
    """What is in force. ``options`` are those for everything; ``origins`` maps their names to where they come from."""

    options: Options
    origins: Mapping[str, str]
    run: ProgramConfig | None = None
    storage: ProgramConfig | None = None
    file: Path | None = None

    @property
    def programs(self) -> tuple[ProgramConfig, ...]:
        """The storage program, if there is one, and the other, in the order in which they start."""
        return tuple(program for program in (self.storage, self.run) if program is not None)

    def is_given(self, name: str) -> bool:
        """Whether somebody set the option, even to its default."""
        return self.origins.get(name, DEFAULT) != DEFAULT

    @property
    def threads(self) -> int:
        """The number of request VMs, with 0 resolved to the CPUs that this process may use."""
        return self.options.threads or len(os.sched_getaffinity(0))

    @property
    def warmup_requests(self) -> tuple[WarmupRequest, ...]:
        """The requests that are taken in turn."""
        return self.options.warmup_request or DEFAULT_REQUESTS

    @property
    def warmup_count(self) -> int:
        """How many are sent: ``--warmup``, or each of the requests once where only those are given."""
        return self.options.warmup if self.is_given("warmup") else len(self.options.warmup_request)

    @property
    def server_expected(self) -> bool:
        """Whether the user asked for a server, so that a program which never listens is a mistake."""
        return self.options.ephemeral or self.warmup_count > 0 or self.is_given("threads")


class _ProgramTable(BaseModel):
    """The keys of a program's table that are no options."""

    model_config = ConfigDict(strict=True)

    program: str
    args: list[str] = []
    one_to_one: bool | None = Field(None, alias="1-to-1")


class _WarmupTable(BaseModel):
    model_config = ConfigDict(extra="forbid")

    method: StrictStr = "GET"
    path: StrictStr = "/"
    headers: dict[StrictStr, StrictStr] = {}
    body: StrictStr = ""
    status: StrictInt | None = None


@dataclass(frozen=True)
class _Part:
    """What one place, a table of the file or the command line, says about one program."""

    source: Source
    program: str
    arguments: tuple[str, ...] = ()
    one_to_one: bool | None = None


def load(
    command_line: Mapping[str, bool | Sequence[str]],
    file: Path | None = None,
    run: Given | None = None,
    storage: Given | None = None,
) -> Config:
    """Merge ``command_line`` (what click collected, by option name) over ``file`` or the default file.

    ``run`` and ``storage`` are the programs that the command line names. A missing default file is fine, a missing
    explicit one is an error. Raises ConfigError or KvmserverError.
    """
    path = file or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None)
    below, above = Source(str(path), f"{path}: "), Source(COMMAND_LINE, "--").read_command_line(command_line)
    tables = _read_file(path, below) if path else {}
    given = {"storage": storage, "run": run}
    words = {role: _given_part(role, words) for role in ROLES if (words := given[role])}
    own = [part.source for part in (*tables.values(), *words.values())]
    for source in (below, above, *own):
        source.check()
    if problems := [problem for source in (below, above, *own) for problem in source.problems]:
        raise ConfigError(problems)
    options = Options.model_validate(below.raw | above.raw)
    origins = dict.fromkeys(ROW_OF_NAME, DEFAULT)
    for source in (below, above):
        origins |= dict.fromkeys(source.raw, source.origin)
    problems = _conflicts(options, origins) + [problem for source in own for problem in source.exclusions()]
    if problems:
        raise ConfigError(problems)
    storage_program, program = (_program(role, below, tables.get(role), above, words.get(role)) for role in ROLES)
    return Config(options, origins, program, storage_program, path)


def _program(
    role: Role, below: Source, table: _Part | None, above: Source, words: _Part | None
) -> ProgramConfig | None:
    parts = [part for part in (words, table) if part is not None]
    if not parts:
        return None
    options, origins = in_force([below, *([table.source] if table else []), above, *([words.source] if words else [])])
    special = {part.source.origin for part in parts}
    one_to_one, origin = next(
        ((part.one_to_one, part.source.origin) for part in parts if part.one_to_one is not None), (False, DEFAULT)
    )
    return ProgramConfig(
        role=role,
        program=parts[0].program,
        arguments=parts[0].arguments,
        origin=(above if words else below).origin,
        options=options,
        origins={**origins, ONE_TO_ONE.name: origin},
        own=frozenset(name for name, origin in origins.items() if origin in special),
        one_to_one=one_to_one,
    )


def _given_part(role: Role, given: Given) -> _Part:
    source = Source(f"{COMMAND_LINE}, {role}", f"{role} --").read_command_line(given.options)
    return _Part(source, given.program, tuple(given.arguments), given.one_to_one)


def _read_file(path: Path, source: Source) -> dict[Role, _Part]:
    """The values at the top of the file go into ``source``; the result is what its tables say about the programs."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KvmserverError(f"cannot read {path}: {(error.strerror or str(error)).lower()}", exit_code=2) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
    for name in list(content):
        if name not in ROW_OF_NAME and name not in _TABLES:
            source.report(name, _unknown_key(name, [*ROW_OF_NAME, *_TABLES]))
            del content[name]
    tables = {role: _read_table(role, content.pop(role), str(path)) for role in ROLES if role in content}
    _read_warmup(content, source)
    source.raw = content
    return tables


def _read_table(role: Role, table: object, path: str) -> _Part:
    """The table of one program; where it is wrong, its source knows."""
    source = Source(f"{path}, [{role}]", f"{path}: {role}.")
    if not isinstance(table, dict):
        source.problems.append(f"{path}: {role}: must be a table with program and args")
        return _Part(source, "")
    source.raw = {name: table[name] for name in table if name in _PROGRAM_OPTIONS}
    known = [*_PROGRAM_OPTIONS, *_WORDS_OF_TABLE[role]]
    for name in (name for name in table if name not in known):
        if name in ROW_OF_NAME:
            source.report(name, "is no option of one program; it belongs above the tables")
        else:
            source.report(name, _unknown_key(name, known))
    try:
        checked = _ProgramTable.model_validate({n: table[n] for n in _WORDS_OF_TABLE[role] if n in table})
    except ValidationError as error:
        for name, problem in problems_of(error):
            source.report(name, problem)
        return _Part(source, "")
    if not checked.program or any("\0" in word for word in (checked.program, *checked.args)):
        source.report("program", "the program may not be empty, and no word may contain a NUL byte")
    return _Part(source, checked.program, tuple(checked.args), checked.one_to_one)


def _unknown_key(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return "unknown key" + (f" (did you mean {close[0]}?)" if close else "")


def _read_warmup(content: dict[str, Any], source: Source) -> None:
    """``warmup`` is a number or an array of tables; beside tables the number is called ``warmup-count``."""
    count = content.pop("warmup-count", None)
    if isinstance(content.get("warmup"), list):
        tables = content.pop("warmup")
        if "warmup-request" in content:
            source.report("warmup-request", "cannot be used together with [[warmup]] tables")
        content["warmup-request"] = [r for i, t in enumerate(tables, 1) if (r := _warmup_table(i, t, source))]
    if count is None:
        return
    if "warmup" in content:
        source.report("warmup-count", "is the same as warmup = N; give one of them")
    content["warmup"] = count


def _warmup_table(number: int, table: object, source: Source) -> WarmupRequest | None:
    try:
        checked = _WarmupTable.model_validate(table)
        return check_request(WarmupRequest(**checked.model_dump()))
    except ValidationError as error:
        for name, problem in problems_of(error):
            source.report(f"warmup[{number}].{name}", problem)
    except ValueError as error:
        source.report(f"warmup[{number}]", str(error))
    return None


def _conflicts(options: Options, origins: Mapping[str, str]) -> list[str]:
    problems = exclusions(options, origins)
    # One of them alone may well contradict the default of the other, which then simply is not reached.
    both = {origins["max-main-memory"], origins["max-address-space"]}
    if DEFAULT not in both and options.max_main_memory > options.max_address_space:
        problems.append("--max-main-memory is larger than --max-address-space")
    if options.protocol == "tcp" and (options.warmup or options.warmup_request):
        problems.append("--protocol tcp: warm-up requests are HTTP")
    return problems
