"""What is asked of the machine before a start."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvmserver import machine
from kvmserver.errors import KvmserverError


def test_a_missing_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "KVM_DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(KvmserverError, match=r"cannot open .*/kvm: no such file or directory") as caught:
        machine.check_before_start()
    assert "modprobe" in caught.value.hint


def test_a_forbidden_device_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    problem, hint = machine.kvm_problem()
    assert problem == "cannot open /dev/kvm: permission denied"
    assert "group" in hint


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "kvm_problem", lambda: ("", ""))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=5 << 20))
    with pytest.raises(KvmserverError, match="only 5 MiB of memory are available, at least 64 MiB are needed"):
        machine.check_before_start()


def test_ports() -> None:
    port = machine.free_port()
    assert machine.is_port_free(port)
    with socket.create_server(("", port)):
        assert not machine.is_port_free(port)


def test_resident_memory_counts_this_process() -> None:
    assert machine.resident_bytes() > 1 << 20
