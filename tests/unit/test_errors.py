"""Errors for people: one sentence, a hint after an empty line, and the right exit code."""

import pytest

from kvmserver import errors


def test_an_error_is_one_sentence_and_perhaps_a_hint() -> None:
    assert errors.render(errors.KvmserverError("it broke")) == "error: it broke\n"
    assert errors.render(errors.KvmserverError("it broke", "mend it")) == "error: it broke\n\nhint: mend it\n"


def test_all_mistakes_of_a_configuration_are_shown() -> None:
    assert errors.render(errors.ConfigError(["a", "b"])) == "error: a\nerror: b\n"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("program_not_found", 127), ("program_not_executable", 126), ("kvm", 1), ("listen", 1), ("snapshot", 1)],
)
def test_exit_codes_of_the_data_plane(kind: str, code: int) -> None:
    error = errors.from_vmm(Exception(kind, "no", "do"))
    assert (error.message, error.hint, error.exit_code) == ("no", "do", code)


@pytest.mark.parametrize("args", [(), ("kvm",), ("kvm", "")])
def test_an_incomplete_exception_still_has_a_message(args: tuple[str, ...]) -> None:
    assert errors.from_vmm(Exception(*args)).message
