"""The command line of scripts/kvm-amd."""

import argparse
import os
import signal
import sys
import tarfile
from pathlib import Path

from kvm_amd import image, machine, project
from kvm_amd.agent import Start

DESCRIPTION = """\
Run a command as root in a machine whose /dev/kvm is the real kvm_amd module, on QEMU's software CPU, with the project
installed as it is in this work tree. The command runs in the copy of the work tree (or in the shared directory), with
no standard input; its output and its exit status are passed on. 123: the start took too long; 124: the time limit; 125:
the machine itself failed."""
EPILOG = """\
examples:
  scripts/kvm-amd -- kvmserver doctor
  scripts/kvm-amd -- pytest -x tests/functional/test_servers.py
  scripts/kvm-amd --share /tmp/here -- sh -c 'uname -a > kernel'
  scripts/kvm-amd --shell"""

SLOW_START, TIME_LIMIT, FAILED = 123, 124, 125
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games",
    "KVMSERVER_TEST_GUESTS": f"/usr/local/{project.GUESTS_AT}",
    "KVMSERVER_BENCH_COMPILED": f"/usr/local/{project.GUESTS_AT}/{project.BENCH}",
    # For the crate's test programs, which cargo sets it for: see docs/kvm.md.
    "CARGO_MANIFEST_DIR": f"/usr/local/{project.TREE_AT}/vmm",
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "kvm-amd", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--share", type=Path, metavar="DIR", help="copied to /share and back when the command has ended")
    made.add_argument("--shell", action="store_true", help="a shell on this terminal instead of a command")
    made.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated"
    )
    made.add_argument(
        "--time-limit", type=float, default=900.0, metavar="SECONDS", help="for the command (default: %(default)g)"
    )
    made.add_argument(
        "--start-limit",
        type=float,
        metavar="SECONDS",
        help="fail after the command where the start took longer; starts that hung do not count (default: no limit)",
    )
    made.add_argument("--rebuild", action="store_true", help="make the image anew, with Debian's newest packages")
    made.add_argument("--verbose", action="store_true", help="say how long the start took")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    return made


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked; ends with status 2 and a sentence where they make no sense."""
    made = parser()
    options = made.parse_args(words)
    if options.command[:1] == ["--"]:
        del options.command[0]
    if bool(options.command) == options.shell:
        made.error("give a command behind --, or --shell")
    if options.shell and not (os.isatty(0) and os.isatty(1)):
        made.error("--shell needs a terminal")
    if options.share is not None and not options.share.is_dir():
        made.error(f"--share: {options.share} is not a directory")
    if any("=" not in variable for variable in options.env):
        made.error("--env: NAME=VALUE is needed")
    return options


def start_of(options: argparse.Namespace) -> Start:
    """What the machine is asked to do."""
    environment = ENVIRONMENT | dict(variable.split("=", 1) for variable in options.env)
    if options.shell:
        environment["TERM"] = os.environ.get("TERM", "dumb")
    return Start(
        command=["/bin/bash", "--login"] if options.shell else options.command,
        directory="/share" if options.share else f"/usr/local/{project.TREE_AT}",
        environment=environment,
        terminal=options.shell,
        shared=options.share is not None,
    )


def main(words: list[str] | None = None) -> int:
    """Run, and answer with the exit status."""
    options = parse(words)
    # An end that is asked for switches the machine off, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        image.check_tools()
        disks = image.get(options.rebuild), project.get()
        limit_s = None if options.shell else options.time_limit
        outcome = machine.run(*disks, start_of(options), options.share, limit_s)
    except machine.TimeLimitError:
        print(f"kvm-amd: the command was ended after {options.time_limit:g} s", file=sys.stderr)
        return TIME_LIMIT
    except (image.MissingPackagesError, image.BuildError, machine.MachineError, tarfile.TarError) as error:
        print(f"kvm-amd: {error}", file=sys.stderr)
        return FAILED
    if outcome.status != 0 and outcome.kernel_log:
        print(f"kvm-amd: meanwhile the machine's kernel printed:\n{outcome.kernel_log}", file=sys.stderr)
    if options.verbose:
        print(f"kvm-amd: {outcome.started_after_s:.1f} s from start to command", file=sys.stderr)
    if outcome.status == 0 and options.start_limit is not None and outcome.started_after_s > options.start_limit:
        took, limit = f"{outcome.started_after_s:.1f} s", f"{options.start_limit:g} s"
        print(f"kvm-amd: the machine took {took} to start, more than {limit}: give it idle CPUs", file=sys.stderr)
        return SLOW_START
    return outcome.status
