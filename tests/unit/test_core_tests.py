"""scripts/kvm-core-tests names tests that exist, and docs/kvm.md says of each that is left out why."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import core_tests

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The names of all functional tests, as pytest has them."""
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", core_tests.F, core_tests.S]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}


@pytest.fixture(scope="module")
def unit_tests() -> set[str]:
    """The functions of the crate that are tests, without the modules that they are in."""
    sources = (ROOT / "vmm/src").rglob("*.rs")
    return {name for path in sources for name in re.findall(r"#\[test\]\s+fn (\w+)\(", path.read_text())}


def is_part(test: str, entry: str) -> bool:
    """Whether an argument of pytest (a file, a function, one case of it) names this test."""
    return test == entry or (test.startswith(entry) and test[len(entry)] in ":[")


def reasons() -> str:
    """The left column of docs/kvm.md's table of tests that fail there, with what Markdown escapes as it is."""
    page = (ROOT / "docs/kvm.md").read_text().replace("\\|", "\0")
    (table,) = re.findall(r"^\| Tests \| Why \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return "\n".join(line.split("|")[1] for line in table.splitlines()).replace("\0", "|")


def test_every_test_of_the_selection_exists(collected: set[str]) -> None:
    unknown = [entry for entry in core_tests.SELECTION if not any(is_part(test, entry) for test in collected)]
    assert unknown == []


def test_what_is_left_out_exists_and_is_selected(collected: set[str]) -> None:
    for entry in core_tests.LEFT_OUT:
        tests = [test for test in collected if is_part(test, entry)]
        assert tests, f"{entry} is no test"
        assert any(is_part(test, chosen) for test in tests for chosen in core_tests.SELECTION), f"{entry} never runs"


def test_unit_tests_that_are_left_out_exist(unit_tests: set[str]) -> None:
    for entry in core_tests.UNIT_TESTS_LEFT_OUT:
        assert entry.rsplit("::", 1)[-1] in unit_tests, entry


def test_unit_tests_that_run_without_features_exist() -> None:
    for entry in core_tests.UNIT_TESTS_WITHOUT:
        assert (ROOT / "vmm/src" / entry.removesuffix("::")).is_dir(), entry


@pytest.mark.parametrize("entry", [*core_tests.LEFT_OUT, *core_tests.UNIT_TESTS_LEFT_OUT])
def test_the_page_says_why_a_test_is_left_out(entry: str) -> None:
    """By its case where it is one of several, else by the function's name."""
    case = re.search(r"\[(.*)\]$", entry)
    name = case[1] if case else entry.rsplit("::", 1)[-1]
    assert f"`{name}`" in reasons()
