"""Doctor: every check says ok, or why not and what to do."""

import json
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from kvmserver import doctor
from kvmserver.doctor import Result
from kvmserver.fallbacks import SENTENCES


@pytest.mark.parametrize("check", doctor.CHECKS, ids=lambda check: check.__name__)
def test_every_check_is_ok_or_says_what_to_do(check: Callable[[], Result]) -> None:
    result = check()
    assert result.name
    assert result.detail
    assert result.ok or result.advice


def test_a_check_that_fails_in_itself_is_reported() -> None:
    def check_something() -> Result:
        raise OSError("boom")

    (result,) = doctor.examine((check_something,))
    assert result == Result("something", False, "cannot be checked: boom", needed=False)


def test_missing_capabilities_are_named() -> None:
    needed = {"api_version": 12, "immediate_exit": True}
    assert doctor.judge_kvm(needed).ok
    facts = doctor.judge_kvm({**needed, "kind": "kvm_amd", "memory_fault_info": False, "memslots": 9})
    assert facts == Result("KVM features", True, "kind kvm_amd, memory_fault_info no, memslots 9")
    assert doctor.judge_kvm({"api_version": 12}).detail == "missing: immediate_exit"
    assert not doctor.judge_kvm({**needed, "api_version": 11}).ok


def test_what_can_be_replaced_is_a_warning() -> None:
    whole = dict.fromkeys(SENTENCES, True)
    assert doctor.judge_replacements(whole).ok
    result = doctor.judge_replacements({**whole, "dirty_ring": False})
    assert (result.ok, result.needed, result.detail) == (False, False, "missing: dirty_ring")
    assert "bitmap" in result.advice


@pytest.mark.parametrize(
    ("entry", "exit_ns", "ok", "says"),
    [
        ("user_mode", 28_000, False, "without hardware virtualization (x): user code runs at full speed, and an exit"),
        ("supervisor_mode", 1_200, True, "hardware virtualization (x), and an exit costs 1.2 us: full speed"),
        ("supervisor_mode", 40_000, False, "hardware virtualization (x), and an exit costs 40.0 us"),
    ],
)
def test_the_kind_of_kvm_is_a_sentence(entry: str, exit_ns: int, ok: bool, says: str) -> None:
    result = doctor.judge_speed({"entry": entry, "exit_ns": exit_ns, "kind": "x"})
    assert (result.ok, result.needed) == (ok, False)
    assert result.detail.startswith(says)
    assert bool(result.advice) is not ok


def test_a_kvm_that_cannot_be_probed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class VmmError(Exception):
        pass

    def probe() -> str:
        raise VmmError("kvm", "cannot open /dev/kvm", "load the module")

    module = ModuleType("kvmserver._vmm")
    module.__dict__.update(VmmError=VmmError, probe=probe)
    monkeypatch.setitem(sys.modules, "kvmserver._vmm", module)
    monkeypatch.setattr("kvmserver._vmm", module, raising=False)
    doctor.probe_kvm.cache_clear()
    assert doctor.check_kvm_features() == Result("KVM features", False, "cannot open /dev/kvm", "load the module")


@pytest.mark.parametrize(("needed", "code"), [(True, 1), (False, 0)])
def test_only_what_is_needed_decides(
    needed: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [Result("a", True, "fine"), Result("b", False, "gone [x]", "bring it back", needed)]
    monkeypatch.setattr(doctor, "examine", lambda: results)
    assert doctor.run(as_json=False) == code
    text = capsys.readouterr().out
    assert "gone [x]: bring it back" in text
    assert doctor.run(as_json=True) == code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is (code == 0)
    assert report["checks"][1] == {
        "name": "b",
        "ok": False,
        "detail": "gone [x]",
        "advice": "bring it back",
        "needed": needed,
    }
