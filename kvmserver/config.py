"""One effective configuration out of kvmserver.toml and the command line, with the origin of every value.

The command line beats the file, option by option. All mistakes of both are reported at once.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, ValidationError

from kvmserver.errors import ConfigError, KvmserverError
from kvmserver.options import ROW_OF_NAME, ROWS, Options, from_command_line, to_toml
from kvmserver.warmup import DEFAULT_REQUESTS, WarmupRequest, check_request

DEFAULT_FILE = "kvmserver.toml"
DEFAULT, COMMAND_LINE = "default", "command line"

_EXCLUDED_BY_ALLOW_ALL = ("allow-read", "allow-write", "allow-env", "allow-net", "allow-connect", "allow-listen")
_TABLES = ("run", "warmup", "warmup-count")


@dataclass(frozen=True)
class Config:
    """What is in force. ``origins`` maps an option's name (or ``program``) to where its value comes from."""

    options: Options
    origins: Mapping[str, str]
    program: str | None = None
    arguments: tuple[str, ...] = ()
    file: Path | None = None

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


class _RunTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    program: str
    args: list[str] = []


class _WarmupTable(BaseModel):
    model_config = ConfigDict(extra="forbid")

    method: StrictStr = "GET"
    path: StrictStr = "/"
    headers: dict[StrictStr, StrictStr] = {}
    body: StrictStr = ""
    status: StrictInt | None = None


@dataclass
class _Source:
    """The values of one place, in TOML's types by option name, and what is wrong with them."""

    origin: str
    raw: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def report(self, name: str, problem: str) -> None:
        label = f"--{name}" if self.origin == COMMAND_LINE else f"{self.origin}: {name}"
        self.problems.append(f"{label}: {problem}")

    def check(self) -> None:
        try:
            Options.model_validate(self.raw)
        except ValidationError as error:
            for name, problem in _problems(error):
                self.report(name, problem)


def load(
    command_line: Mapping[str, bool | Sequence[str]],
    file: Path | None = None,
    program: str | None = None,
    arguments: Sequence[str] = (),
) -> Config:
    """Merge ``command_line`` (what click collected, by option name) over ``file`` or the default file.

    A missing default file is fine, a missing explicit one is an error. Raises ConfigError or KvmserverError.
    """
    path = file or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None)
    below = _Source(str(path))
    run = _read_file(path, below) if path else None
    above = _read_command_line(command_line)
    origins = {row.name: DEFAULT for row in ROWS}
    for source in (below, above):
        source.check()
        origins.update(dict.fromkeys(source.raw, source.origin))
    problems = below.problems + above.problems
    if problems:
        raise ConfigError(problems)
    options = Options.model_validate(below.raw | above.raw)
    if problems := _conflicts(options, origins):
        raise ConfigError(problems)
    origins["program"] = COMMAND_LINE if program is not None else below.origin if run else DEFAULT
    if program is None and run is not None:
        program, arguments = run.program, run.args
    return Config(options, origins, program, tuple(arguments), path)


def print_config(config: Config) -> str:
    """The effective configuration as TOML that can be saved as kvmserver.toml, each value with its origin.

    Values that nobody set are commented out, so that the saved file means the same (an explicit ``threads``, for
    one, says that a server is expected).
    """
    tables = [request for request in config.options.warmup_request if not _is_plain(request)]
    lines = []
    for row in ROWS:
        name, value = row.name, getattr(config.options, row.field)
        if name == "threads":
            value = config.threads
        elif name == "warmup":
            value, name = config.warmup_count, "warmup-count" if tables else name
        elif name == "cwd":
            value = os.path.abspath(value)
        elif name == "warmup-request" and tables:
            continue
        comment = "" if config.is_given(row.name) else "# "
        lines.append(f"{f'{comment}{name} = {to_toml(row, value)}':<40} # {config.origins[row.name]}")
    if config.program is not None:
        text = ROW_OF_NAME["cwd"]
        lines += ["", f"[run]{'':<35} # {config.origins['program']}", f"program = {to_toml(text, config.program)}"]
        lines += [f"args = {to_toml(text, config.arguments)}"]
    for request in config.options.warmup_request if tables else ():
        lines += ["", f"[[warmup]]{'':<30} # {config.origins['warmup-request']}", *_warmup_lines(request)]
    return "\n".join(lines) + "\n"


def _is_plain(request: WarmupRequest) -> bool:
    return request == WarmupRequest(request.method, request.path)


def _warmup_lines(request: WarmupRequest) -> list[str]:
    text = ROW_OF_NAME["cwd"]
    headers = ", ".join(f"{to_toml(text, k)} = {to_toml(text, v)}" for k, v in request.headers.items())
    lines = [f"method = {to_toml(text, request.method)}", f"path = {to_toml(text, request.path)}"]
    lines += [f"headers = {{ {headers} }}"] if headers else []
    lines += [f"body = {to_toml(text, request.body)}"] if request.body else []
    return lines + ([f"status = {request.status}"] if request.status else [])


def _read_command_line(given: Mapping[str, bool | Sequence[str]]) -> _Source:
    source = _Source(COMMAND_LINE)
    for name, words in given.items():
        try:
            source.raw[name] = from_command_line(ROW_OF_NAME[name], words)
        except ValueError as error:
            source.report(name, str(error))
    return source


def _read_file(path: Path, source: _Source) -> _RunTable | None:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KvmserverError(f"cannot read {path}: {(error.strerror or str(error)).lower()}", exit_code=2) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
    for name in list(content):
        if name not in ROW_OF_NAME and name not in _TABLES:
            close = difflib.get_close_matches(name, [*ROW_OF_NAME, "run", "warmup-count"], 1)
            source.report(name, "unknown key" + (f" (did you mean {close[0]}?)" if close else ""))
            del content[name]
    run = content.pop("run", None)
    _read_warmup(content, source)
    source.raw = content
    return None if run is None else _read_run(run, source)


def _read_run(table: object, source: _Source) -> _RunTable | None:
    try:
        run = _RunTable.model_validate(table)
    except ValidationError as error:
        for name, problem in _problems(error):
            source.report(f"run.{name}" if name else "run", problem)
        return None
    if not run.program or any("\0" in word for word in (run.program, *run.args)):
        source.report("run", "the program may not be empty, and no word may contain a NUL byte")
    return run


def _read_warmup(content: dict[str, Any], source: _Source) -> None:
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


def _warmup_table(number: int, table: object, source: _Source) -> WarmupRequest | None:
    try:
        checked = _WarmupTable.model_validate(table)
        return check_request(WarmupRequest(**checked.model_dump()))
    except ValidationError as error:
        for name, problem in _problems(error):
            source.report(f"warmup[{number}].{name}", problem)
    except ValueError as error:
        source.report(f"warmup[{number}]", str(error))
    return None


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    """``(key, what is wrong)`` of each mistake, without pydantic's own phrases around our messages."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        message = str(cause) if cause else item["msg"][:1].lower() + item["msg"][1:]
        found.append((key, "unknown key" if item["type"] == "extra_forbidden" else message))
    return found


def _conflicts(options: Options, origins: Mapping[str, str]) -> list[str]:
    problems = []
    for name in _EXCLUDED_BY_ALLOW_ALL if options.allow_all else ():
        if getattr(options, name.replace("-", "_")):
            where = f"({origins['allow-all']}) and --{name} ({origins[name]})"
            problems.append(f"--allow-all {where} exclude each other")
    # One of them alone may well contradict the default of the other, which then simply is not reached.
    both = {origins["max-main-memory"], origins["max-address-space"]}
    if DEFAULT not in both and options.max_main_memory > options.max_address_space:
        problems.append("--max-main-memory is larger than --max-address-space")
    return problems
