"""Fixtures. Each says what it is for; the machinery is in harness.py."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from harness import EchoPeers, Guests, Kvmserver, MissingToolError

_COMMAND = pytest.StashKey[Kvmserver]()


def _kvm_problem() -> str:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm cannot be opened ({error.strerror}): these tests need KVM and are never skipped"
    return ""


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """The C and Go programs, compiled once a session, or those that KVMSERVER_TEST_GUESTS names."""
    if compiled := os.environ.get("KVMSERVER_TEST_GUESTS"):
        return Guests(Path(compiled))
    return Guests(tmp_path_factory.mktemp("guests"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Kvmserver]:
    """The installed command and everything it started in this session. A machine without KVM fails here."""
    if problem := _kvm_problem():
        pytest.fail(problem, pytrace=False)
    try:
        command = Kvmserver(tmp_path_factory.mktemp("kvmserver"))
    except MissingToolError as error:
        pytest.fail(str(error), pytrace=False)
    request.config.stash[_COMMAND] = command
    yield command
    command.kill_all()


@pytest.fixture
def kvmserver(installed: Kvmserver) -> Iterator[Kvmserver]:
    """The installed command; what a test starts and does not stop is stopped after it, and must end with code 0."""
    before = list(installed.services)
    yield installed
    for service in [service for service in installed.services if service not in before]:
        if service.process.poll() is None:
            installed.stop(service)
        else:
            installed.services.remove(service)


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoPeers]:
    """Echo peers on the loopback interface and on a unix socket."""
    echo = EchoPeers(tmp_path_factory.mktemp("peers"))
    yield echo
    echo.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """An empty directory, by its real path."""
    return tmp_path.resolve()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what the started servers said to the report of a failed test."""
    report = yield
    if report.failed and _COMMAND in item.config.stash:
        for service in item.config.stash[_COMMAND].services:
            report.sections.append(("kvmserver", service.story()))
    return report
