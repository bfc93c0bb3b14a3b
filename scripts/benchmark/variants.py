"""The ways in which a program is run, and the kinds of connections over which each is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmark.programs import Program
from benchmark.results import KEPT, NATIVE, NATIVE_PLAIN, NEW
from benchmark.tools import kvmserver, output_of

NO_RESET = "isolated, no reset"
RESET = "isolated, reset"
NO_FAST_PATH = "isolated, reset, no fast path"
FORK = "fork per request"
PROCESS = "process per request"
WORKERS = "worker processes"


@dataclass(frozen=True)
class Variant:
    """One way to run a program."""

    name: str
    kinds: tuple[str, ...]
    # Options of kvmserver; None for what runs outside it.
    options: tuple[str, ...] | None = None
    open_loop: bool = False
    # Where every request is a process of its own, hundreds at a time would only measure the memory.
    clients_max: int = 1_000_000

    @property
    def isolated(self) -> bool:
        """Whether it runs in kvmserver."""
        return self.options is not None


VARIANTS = (
    Variant(NATIVE, (KEPT, NEW), open_loop=True),
    Variant(NATIVE_PLAIN, (KEPT, NEW), open_loop=True),
    Variant(NO_RESET, (KEPT, NEW), ()),
    Variant(RESET, (KEPT, NEW), ("-e",), open_loop=True),
    Variant(NO_FAST_PATH, (KEPT,), ("-e", "--no-fast-path")),
    Variant(FORK, (NEW,), clients_max=64),
    Variant(PROCESS, (NEW,), clients_max=8),
    Variant(WORKERS, (KEPT, NEW), open_loop=True),
)
NAMES = tuple(variant.name for variant in VARIANTS)


@cache
def has_option(name: str) -> bool:
    """Whether the installed kvmserver knows an option."""
    return name.removeprefix("--no-") in output_of([kvmserver(), "--help"])


def available(variant: Variant) -> bool:
    """Whether this kvmserver can run it."""
    return all(has_option(option) for option in variant.options or () if option.startswith("--"))


def kinds_of(program: Program, variant: Variant) -> list[str]:
    """The kinds of connections over which a program is asked in a variant."""
    return [kind for kind in variant.kinds if variant.isolated or kind in program.native_kinds]


def command(
    program: Program, variant: Variant, port: int, threads: int = 1, more: Sequence[str] = ()
) -> list[str] | None:
    """The words that start a variant, with ``more`` options of kvmserver; None where a program has none such."""
    special = {
        FORK: program.fork,
        PROCESS: program.process,
        WORKERS: program.workers,
        NATIVE_PLAIN: program.command if program.v8_flags else None,
    }
    words: Sequence[str] | None = special.get(variant.name, program.command)
    if words is None:
        return None
    filled = [word.replace("{port}", str(port)) for word in words]
    if variant.options is None:
        return filled
    shared = [kvmserver(), "-t", str(threads), "--warmup", str(program.warmup), "--allow-all"]
    return [*shared, *variant.options, *more, "run", *filled]
