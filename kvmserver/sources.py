"""The places that set options, and what is in force when several of them speak.

A place is the command line in front of the command, the words after ``run`` or ``storage``, the top of kvmserver.toml,
or one of its tables. Values stay in TOML's types here; the models check them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kvmserver.options import ROW_OF_NAME, Options, from_command_line

DEFAULT, COMMAND_LINE = "default", "command line"
ALLOW_ALL = "allow-all"
SPECIFIC_GRANTS = ("allow-read", "allow-write", "allow-env", "allow-net", "allow-connect", "allow-listen")


@dataclass
class Source:
    """The values of one place, in TOML's types by option name, and what is wrong with them.

    ``origin`` is how the place is shown, ``label`` what stands before an option's name in a message about it.
    """

    origin: str
    label: str
    raw: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def report(self, name: str, problem: str) -> None:
        """Note a mistake."""
        self.problems.append(f"{self.label}{name}: {problem}")

    def read_command_line(self, given: Mapping[str, bool | Sequence[str]]) -> "Source":
        """Take over what click collected."""
        for name, words in given.items():
            try:
                self.raw[name] = from_command_line(ROW_OF_NAME[name], words)
            except ValueError as error:
                self.report(name, str(error))
        return self

    def check(self) -> None:
        """Validate every value."""
        try:
            Options.model_validate(self.raw)
        except ValidationError as error:
            for name, problem in problems_of(error):
                self.report(name, problem)

    def exclusions(self) -> list[str]:
        """How the values, which are valid, contradict one another."""
        return exclusions(Options.model_validate(self.raw), dict.fromkeys(self.raw, self.origin))


def exclusions(options: Options, origins: Mapping[str, str]) -> list[str]:
    """A sentence for each specific grant that stands beside ``allow-all``."""
    if not options.allow_all:
        return []
    names = [name for name in SPECIFIC_GRANTS if getattr(options, ROW_OF_NAME[name].field)]
    told = {name: f"--{name} ({origins[name]})" for name in (ALLOW_ALL, *names)}
    return [f"{told[ALLOW_ALL]} and {told[name]} exclude each other" for name in names]


def in_force(sources: Sequence[Source]) -> tuple[Options, dict[str, str]]:
    """The options of one program and their origins; ``sources`` come from the most general to the most specific.

    A value replaces the inherited one. Whoever names specific grants does not mean an inherited ``allow-all`` to
    apply, and whoever says ``allow-all`` needs no inherited list.
    """
    raw: dict[str, Any] = {}
    origins = dict.fromkeys(ROW_OF_NAME, DEFAULT)
    for source in sources:
        no_longer = [ALLOW_ALL] if any(name in source.raw for name in SPECIFIC_GRANTS) else []
        no_longer += SPECIFIC_GRANTS if source.raw.get(ALLOW_ALL) is True else []
        for name in no_longer:
            if raw.pop(name, False):
                origins[name] = source.origin
        raw |= source.raw
        origins |= dict.fromkeys(source.raw, source.origin)
    return Options.model_validate(raw), origins


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """``(key, what is wrong)`` of each mistake, without pydantic's own phrases around our messages."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        message = str(cause) if cause else item["msg"][:1].lower() + item["msg"][1:]
        found.append((key, "unknown key" if item["type"] == "extra_forbidden" else message))
    return found
