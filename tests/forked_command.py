"""The command in a fork of the test process instead of a new interpreter: for machines on which Python starts slowly.

On an emulated CPU the imports of a command take longer than most tests (scripts/kvm-core-tests). The same ``main`` runs
with the words, environment, streams, directory and session that a process of its own would have; what a test runner has
put into the interpreter is taken out again. The tenant is a new interpreter here, too: the command starts it so.
"""

import contextlib
import faulthandler
import gc
import importlib
import logging
import os
import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NoReturn

# Modules that are the entry point of a process.
_ENTRIES = ("__main__", "demo_server")


def preload() -> None:
    """Import everything that a command may need, once."""
    package = importlib.import_module("kvmserver")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in _ENTRIES:
            importlib.import_module(f"kvmserver.{module.name}")


def in_child(words: Sequence[str], environment: Mapping[str, str]) -> Callable[[], NoReturn]:
    """What ``subprocess`` is to call in the new process in place of ``exec`` (its ``preexec_fn``)."""

    def run() -> NoReturn:
        status = 1
        try:
            _clean_interpreter(words, environment)
            # With them goes the pipe by which subprocess waits for an exec.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            status = _main()
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
            os._exit(status)

    return run


def _flush(stream: IO[str]) -> None:
    # Whoever read it may have gone; a new interpreter would find that, too.
    with contextlib.suppress(OSError):
        stream.flush()


def _clean_interpreter(words: Sequence[str], environment: Mapping[str, str]) -> None:
    faulthandler.disable()
    gc.enable()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = words
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)


def _main() -> int:
    from kvmserver import cli

    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
