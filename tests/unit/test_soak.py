"""What scripts/soak complains of, from made-up looks at a service; nothing is started here."""

import argparse
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"requests": 1000, "memory_mib": 100.0, "descriptors": 70, "threads": 7, "mappings": 1000, "discarded": 0}


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("soak", str(ROOT / "scripts/soak"))
    spec = spec_from_loader("soak", loader)
    assert spec is not None
    module = module_from_spec(spec)
    # A data class looks its own module up.
    sys.modules["soak"] = module
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("grown", "errors", "complaint"),
    [
        ({"memory_mib": 108.1}, 0, "memory grew from 100.0 to 108.1 MiB"),
        ({"descriptors": 71}, 0, "descriptors grew from 70 to 71"),
        ({"threads": 8}, 0, "threads grew from 7 to 8"),
        ({"mappings": 1021}, 0, "mappings grew from 1000 to 1021"),
        ({"discarded": 1}, 0, "1 VMs could not be reset"),
        ({}, 3, "3 requests were not answered as they should be"),
    ],
)
def test_each_complaint_is_made(grown: dict[str, float], errors: int, complaint: str, soak: ModuleType) -> None:
    assert soak.complaints(soak.Look(**GOOD), soak.Look(**GOOD | grown), errors) == [complaint]


@pytest.mark.parametrize(
    "same", [{}, {"memory_mib": 108.0}, {"mappings": 1020}, {"descriptors": 60, "threads": 6, "memory_mib": 50.0}]
)
def test_what_is_no_growth_is_no_complaint(same: dict[str, float], soak: ModuleType) -> None:
    assert soak.complaints(soak.Look(**GOOD), soak.Look(**GOOD | same), 0) == []


def test_large_services_may_grow_by_a_share(soak: ModuleType) -> None:
    large = GOOD | {"memory_mib": 1000.0}
    assert soak.complaints(soak.Look(**large), soak.Look(**large | {"memory_mib": 1020.0}), 0) == []
    assert len(soak.complaints(soak.Look(**large), soak.Look(**large | {"memory_mib": 1021.0}), 0)) == 1


def test_mixed_requests_need_a_program_that_knows_them(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soak", "--mixed", "server", "{port}"])
    with pytest.raises(SystemExit):
        soak.parse_arguments()
    monkeypatch.setattr(sys, "argv", ["soak", "--mixed"])
    assert isinstance(soak.parse_arguments(), argparse.Namespace)
