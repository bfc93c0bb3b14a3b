"""The command line: ``kvmserver [OPTIONS] [storage PROGRAM [ARGS...] ++] run PROGRAM [ARGS...]``, ``demo``, ``doctor``,
``guestlib``.

Parses, calls, prints, and turns every failure into one sentence and an exit code. The options come from the table in
options.py; only ``--config`` and ``--print-config`` exist here alone, since neither makes sense in the file.
"""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kvmserver import config, errors
from kvmserver.config import Given
from kvmserver.errors import EXIT_SIGNAL_BASE, EXIT_USAGE, KvmserverError, UsageError
from kvmserver.options import BARE, GROUPS, OBSERVING, ONE_TO_ONE, PROGRAM, PROGRAM_ROWS, ROW_OF_NAME, ROWS, Kind, Row

SIGINT = 2

# Between the storage program's words and the command ``run``.
SEPARATOR = "++"
STORAGE_FORM = "kvmserver [OPTIONS] storage [OPTIONS] PROGRAM [ARGS...] ++ run [OPTIONS] PROGRAM [ARGS...]"


def option_words(row: Row) -> str:
    """How the option is written in help and documentation, such as ``-t, --threads N``."""
    short = f"-{row.opt.short}, " if row.opt.short else ""
    if row.opt.kind is Kind.FLAG:
        return f"{short}{row.flag_name}"
    value = f"[={row.opt.metavar}]" if row.opt.kind is Kind.GRANT else f" {row.opt.metavar}"
    return f"{short}{row.flag_name}{value}"


def _click_option(row: Row) -> click.Option:
    names = [row.flag_name, row.field] + ([f"-{row.opt.short}"] if row.opt.short else [])
    if row.opt.kind is Kind.FLAG:
        # The negative form lets the command line switch off what the file switches on.
        names[0] = f"{row.flag_name}/--no-{row.name}"
        return click.Option(names, is_flag=True, default=None, help=row.opt.help)
    # Everything else is collected as words and converted with the values of the file, so that there is one parser.
    return click.Option(names, multiple=True, type=str, help=row.opt.help)


def mark_bare_grants(words: Sequence[str]) -> list[str]:
    """Turn ``--allow-read`` without ``=`` into a form that click cannot join with the next word.

    Only kvmserver's own options are looked at: the walk ends at the first word that is neither an option nor the
    value of one, which is the command, or the program where ``words`` are those after the command.
    """
    bare = {row.flag_name for row in ROWS if row.opt.kind is Kind.GRANT}
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        result.append(f"{word}={BARE}" if word in bare else word)
        if _takes_next_word(word):
            result += [value] if (value := next(rest, None)) is not None else []
        elif not word.startswith("-") or word in ("-", "--"):
            break
    return result + list(rest)


def _takes_next_word(word: str) -> bool:
    if word.startswith("--"):
        row = ROW_OF_NAME.get(word[2:])
        return word == "--config" or (row is not None and row.opt.kind not in (Kind.FLAG, Kind.GRANT))
    with_value = {row.opt.short for row in ROWS if row.opt.short and row.opt.kind is not Kind.FLAG} | {"c"}
    letters = word[1:] if word.startswith("-") else ""
    first = next((index for index, letter in enumerate(letters) if letter in with_value), None)
    return first is not None and first == len(letters) - 1


def split_at_run(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The words of the storage program, and those after ``++ run`` (None where that is missing).

    Any other ``++`` is a word of one of the programs: every one that is not followed by ``run``, and all that come
    after the first that is.
    """
    for index, word in enumerate(words):
        if word == SEPARATOR and words[index + 1 : index + 2] == ["run"]:
            return list(words[:index]), list(words[index + 2 :])
    return list(words), None


class _ProgramCommand(click.Command):
    """``run`` or ``storage``: options of one program, then its words, which are not looked at."""

    rows: Sequence[Row] = PROGRAM_ROWS

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, mark_bare_grants(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options for this program alone"):
            rows = [(option_words(row), row.opt.help) for row in self.rows]
            formatter.write_dl([*rows, ("-h, --help", "Print this help.")])


class _StorageCommand(_ProgramCommand):
    """``storage PROGRAM [ARGS...] ++ run PROGRAM [ARGS...]``."""

    rows = (ONE_TO_ONE, *PROGRAM_ROWS)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), SEPARATOR, "run ..."]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, ctx.obj.words_of_run = split_at_run(args)
        return super().parse_args(ctx, own)


class _Main(click.Group):
    """The group of commands, with bare grants and grouped help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, mark_bare_grants(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            rows = [(option_words(row), row.opt.help) for row in ROWS if row.opt.group == group]
            if group == PROGRAM:
                rows.append(
                    ("-c, --config FILE", f"Configuration file (default: {config.DEFAULT_FILE}, if it exists).")
                )
            if group == OBSERVING:
                rows.append(("--print-config", "Print the effective configuration with origins, start nothing."))
                rows += [("-V, --version", "Print the version."), ("-h, --help", "Print this help.")]
            with formatter.section(group):
                formatter.write_dl(rows)
        self.format_commands(ctx, formatter)


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        # 20 ms that only this option should cost.
        import importlib.metadata

        click.echo(f"kvmserver {importlib.metadata.version('kvmserver')}")
        ctx.exit()


@click.group(
    cls=_Main,
    invoke_without_command=True,
    subcommand_metavar="[storage PROGRAM [ARGS...] ++] run PROGRAM [ARGS...] | demo | doctor | guestlib",
    params=[_click_option(row) for row in ROWS],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path))
@click.option("--print-config", is_flag=True)
@click.option("-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
@click.pass_context
def command_line(ctx: click.Context, /, config_file: Path | None, print_config: bool, **given: object) -> None:
    """Serve every HTTP request from a fresh fork of a warmed-up Linux program in a KVM virtual machine.

    Durations and sizes take suffixes (250ms, 64MiB); bare numbers are seconds and MiB. Every flag has a --no- form.
    Permissions, --env and --cwd may also stand after run or storage, and then are for that program alone.
    """
    ctx.obj = _Request(
        {row.name: given[row.field] for row in ROWS if _is_given(given[row.field])}, config_file, print_config
    )
    if ctx.invoked_subcommand is None:
        ctx.exit(ctx.obj.run(None, ()))


def _is_given(words: object) -> bool:
    return words is not None and words != ()


class _Request:
    """What the options in front of the command say."""

    def __init__(self, given: dict[str, Any], file: Path | None, print_only: bool) -> None:
        self.given = given
        self.file = file
        self.print_only = print_only
        self.words_of_run: list[str] | None = None

    def run(self, program: Given | None, storage: Given | None = None) -> int:
        """Run the programs (or those of the file) and return the exit code."""
        merged = config.load(self.given, self.file, program, storage)
        if self.print_only:
            from kvmserver import config_text

            click.echo(config_text.as_toml(merged), nl=False)
            return 0
        if merged.run is None:
            raise UsageError(
                "no program to run", "kvmserver [OPTIONS] run PROGRAM [ARGS...], or a [run] table in kvmserver.toml"
            )
        from kvmserver import supervisor

        return supervisor.run(merged)


def _given(program: str, args: Sequence[str], options: Mapping[str, Any], one_to_one: bool | None = None) -> Given:
    chosen = {row.name: options[row.field] for row in PROGRAM_ROWS if _is_given(options[row.field])}
    return Given(program, args, chosen, one_to_one)


_PROGRAM_SETTINGS: dict[str, Any] = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


@command_line.command(
    cls=_ProgramCommand,
    context_settings=_PROGRAM_SETTINGS,
    params=[_click_option(row) for row in PROGRAM_ROWS],
    short_help="Run a program; all that follows it is its own.",
)
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, program: str, args: tuple[str, ...], **given: object) -> None:
    """Run PROGRAM with ARGS in a VM; if it is a server, serve every request from a fork of it."""
    ctx.exit(ctx.obj.run(_given(program, args, given)))


@command_line.command(
    cls=_StorageCommand,
    context_settings=_PROGRAM_SETTINGS,
    params=[_click_option(row) for row in _StorageCommand.rows],
    short_help="Run a storage program beside the other: storage PROGRAM ++ run PROGRAM.",
)
@click.argument("program", required=False, metavar="PROGRAM")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def storage(
    ctx: click.Context, /, program: str | None, args: tuple[str, ...], one_to_one: bool | None, **given: object
) -> None:
    """Run PROGRAM with ARGS in a VM that is never reset, for the program after run to call."""
    if program is None:
        raise UsageError("'storage' names no program", STORAGE_FORM)
    if ctx.obj.words_of_run is None:
        raise UsageError(f"the storage program {program!r} is not followed by '++ run PROGRAM'", STORAGE_FORM)
    with run.make_context("run", ctx.obj.words_of_run, parent=ctx.parent) as other:
        caller = _given(**{name: other.params[name] for name in ("program", "args")}, options=other.params)
    ctx.exit(ctx.obj.run(caller, _given(program, args, given, one_to_one)))


@command_line.command(short_help="Serve a counter that cannot count, and show it.")
@click.option("--port", type=click.IntRange(0, 65535), default=None, help="Port to serve on; 0 picks a free one.")
@click.pass_context
def demo(ctx: click.Context, port: int | None) -> None:
    """Serve the counter program of this package, ask it three times, compare with a native run, serve on."""
    from kvmserver import demo as demonstration

    ctx.exit(demonstration.run(ctx.obj.given, port))


@command_line.command(short_help="Say what this machine has and lacks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check everything kvmserver needs; exit code 1 if something needed is missing."""
    from kvmserver import doctor as examination

    ctx.exit(examination.run(as_json))


@command_line.command(short_help="Write what programs need to call the storage program.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that have other content.")
def guestlib(directory: Path, force: bool) -> None:
    """Write libkvmserverguest.so, its header and its wrappers into DIRECTORY, to link and to copy."""
    from kvmserver import guestlib as library

    for path in library.write(directory, force):
        click.echo(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``kvmserver`` script; never returns."""
    sys.exit(_exit_code(lambda: command_line.main(arguments, standalone_mode=False)))


def _exit_code(call: Callable[[], object]) -> int:
    try:
        code = call()
    except KvmserverError as error:
        return _show(error)
    except click.ClickException as error:
        return _show(_from_click(error))
    except (click.Abort, KeyboardInterrupt):
        return EXIT_SIGNAL_BASE + SIGINT
    except BrokenPipeError:
        return errors.EXIT_FAILURE
    return code if isinstance(code, int) else 0


def _show(error: KvmserverError) -> int:
    click.echo(errors.render(error), nl=False, err=True)
    return error.exit_code


def _from_click(error: click.ClickException) -> KvmserverError:
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error)
    message = error.format_message().strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    hint = "kvmserver --help lists commands and options" if isinstance(error, click.UsageError) else ""
    return KvmserverError(message, hint, EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code)


def _unknown_option(error: click.NoSuchOption) -> KvmserverError:
    name, command = error.option_name, error.ctx.command.name if error.ctx else None
    if name in (ONE_TO_ONE.flag_name, f"--no-{ONE_TO_ONE.name}"):
        return UsageError(f"{name} is an option of storage", f"kvmserver storage {name} PROGRAM [ARGS...] ++ run ...")
    ours = [row.flag_name for row in ROWS] + [f"-{row.opt.short}" for row in ROWS if row.opt.short]
    ours += ["--config", "-c", "--print-config", "--version", "--help"]
    if name in ours and error.ctx is not None and error.ctx.parent is not None:
        first = error.ctx.parent.invoked_subcommand or command
        return UsageError(f"{name} comes too late", f"options of kvmserver come before '{first}'")
    close = difflib.get_close_matches(name, ours, 1)
    return UsageError(f"unknown option {name}", f"did you mean {close[0]}?" if close else "kvmserver --help lists all")
