"""The effective configuration as text: what ``--print-config`` shows."""

import os

from kvmserver.config import Config, ProgramConfig
from kvmserver.options import ONE_TO_ONE, PROGRAM_ROWS, ROW_OF_NAME, ROWS, Row, to_toml
from kvmserver.warmup import WarmupRequest

_TEXT = ROW_OF_NAME["cwd"]
_ORIGIN_COLUMN = 40


def as_toml(config: Config) -> str:
    """The effective configuration as TOML that can be saved as kvmserver.toml, each value with its origin.

    Values that nobody set are commented out, so that the saved file means the same (an explicit ``threads``, for
    one, says that a server is expected). So are those that a program has in common with the other.
    """
    tables = [request for request in config.options.warmup_request if not _is_plain(request)]
    lines = []
    for row in ROWS:
        name, value = row.name, _shown(row, getattr(config.options, row.field))
        if name == "threads":
            value = config.threads
        elif name == "warmup":
            value, name = config.warmup_count, "warmup-count" if tables else name
        elif name == "warmup-request" and tables:
            continue
        lines.append(_line(name, to_toml(row, value), config.origins[row.name], config.is_given(row.name)))
    for program in config.programs:
        lines += ["", *_program_lines(program, with_options=config.storage is not None or bool(program.own))]
    for request in config.options.warmup_request if tables else ():
        lines += ["", _with_origin("[[warmup]]", config.origins["warmup-request"]), *_warmup_lines(request)]
    return "\n".join(lines) + "\n"


def _program_lines(program: ProgramConfig, with_options: bool) -> list[str]:
    lines = [_with_origin(f"[{program.role}]", program.origin)]
    lines += [f"program = {to_toml(_TEXT, program.program)}", f"args = {to_toml(_TEXT, program.arguments)}"]
    if program.role == "storage":
        origin = program.origins[ONE_TO_ONE.name]
        lines.append(_line(ONE_TO_ONE.name, to_toml(ONE_TO_ONE, program.one_to_one), origin, program.one_to_one))
    for row in PROGRAM_ROWS if with_options else ():
        value = to_toml(row, _shown(row, getattr(program.options, row.field)))
        lines.append(_line(row.name, value, program.origins[row.name], row.name in program.own))
    return lines


def _line(name: str, value: str, origin: str, is_given: bool) -> str:
    return _with_origin(f"{'' if is_given else '# '}{name} = {value}", origin)


def _with_origin(text: str, origin: str) -> str:
    return f"{text:<{_ORIGIN_COLUMN}} # {origin}"


def _shown(row: Row, value: object) -> object:
    return os.path.abspath(str(value)) if row.name == "cwd" else value


def _is_plain(request: WarmupRequest) -> bool:
    return request == WarmupRequest(request.method, request.path)


def _warmup_lines(request: WarmupRequest) -> list[str]:
    headers = ", ".join(f"{to_toml(_TEXT, k)} = {to_toml(_TEXT, v)}" for k, v in request.headers.items())
    lines = [f"method = {to_toml(_TEXT, request.method)}", f"path = {to_toml(_TEXT, request.path)}"]
    lines += [f"headers = {{ {headers} }}"] if headers else []
    lines += [f"body = {to_toml(_TEXT, request.body)}"] if request.body else []
    return lines + ([f"status = {request.status}"] if request.status else [])
