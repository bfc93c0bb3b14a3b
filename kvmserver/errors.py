"""What can go wrong on our side, as sentences for people, and the exit code that goes with each."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL_BASE = 128

# VmmError kinds that have an exit code of their own; every other kind is a failure of ours.
_EXIT_CODE_OF_KIND = {"program_not_found": EXIT_NOT_FOUND, "program_not_executable": EXIT_NOT_EXECUTABLE}


class KvmserverError(Exception):
    """A failure that is shown as ``error: MESSAGE`` and, after an empty line, ``hint: HINT``.

    ``message`` is one sentence in lower case without a final period; ``hint`` says what to do and may be empty.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(KvmserverError):
    """The command line cannot be understood."""

    exit_code = EXIT_USAGE


class ConfigError(KvmserverError):
    """One or more values of the file or the command line are wrong; all of them are reported together."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("\nerror: ".join(problems), hint)
        self.problems = problems


class ProgramNotFoundError(KvmserverError):
    """The program does not exist (what a shell answers with 127)."""

    exit_code = EXIT_NOT_FOUND


class ProgramNotExecutableError(KvmserverError):
    """The program exists but cannot be run (what a shell answers with 126)."""

    exit_code = EXIT_NOT_EXECUTABLE


class StartError(KvmserverError):
    """The program could not be brought to the point where it serves."""


def from_vmm(error: Exception) -> KvmserverError:
    """The exception of the data plane as one of ours; ``error.args`` is ``(kind, message, hint)``."""
    kind, message, hint = (*(str(part) for part in error.args), "", "", "")[:3]
    if not message:
        return KvmserverError(kind or type(error).__name__)
    return KvmserverError(message, hint, _EXIT_CODE_OF_KIND.get(kind))


def render(error: KvmserverError) -> str:
    """The text for standard error, with its final newline."""
    hint = f"\nhint: {error.hint}\n" if error.hint else ""
    return f"error: {error.message}\n{hint}"
