"""The start message: everything resolved, deny by default, and all mistakes at once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvmserver import config, plan
from kvmserver.config import Config, Given
from kvmserver.errors import ConfigError, KvmserverError
from kvmserver.program import Program

ANY = [{"address": None, "port": None}]


def no_names(host: str) -> list[str]:
    raise OSError(-2, "Name or service not known")


def start(directory: Path, *arguments: str, **given: Any) -> dict[str, Any]:
    options = {name.replace("_", "-"): words for name, words in given.items()}
    merged = config.load(options, Path(os.devnull), Given("tool", arguments))
    return message_of(merged, directory)


def message_of(merged: Config, directory: Path) -> dict[str, Any]:
    files = [Program(program.program, f"/bin/{program.program}") for program in merged.programs]
    resolved = plan.resolve(merged, files, str(directory), {"HOME": "/root", "X": "1"}, no_names)
    return dict(json.loads(json.dumps(plan.start_message(merged, resolved))))


def test_without_grants_nothing_is_allowed(directory: Path) -> None:
    sandbox = start(directory)["sandbox"]
    assert [sandbox[name] for name in ("read", "write", "volumes", "connect", "listen")] == [[], [], [], [], []]
    assert [name for name, _ in sandbox["environment"]] == ["PATH", "HOME", "LANG"]
    assert sandbox["working_directory"] == str(directory)


def test_allow_all_allows_everything(directory: Path) -> None:
    sandbox = start(directory, allow_all=True)["sandbox"]
    assert (sandbox["read"], sandbox["write"], sandbox["connect"], sandbox["listen"]) == (["/"], ["/"], ANY, ANY)
    assert ["X", "1"] in sandbox["environment"]


def test_net_grants_are_added_up(directory: Path) -> None:
    sandbox = start(directory, allow_net=[":80"], allow_connect=["::1", ":80"], allow_listen=["\0"])["sandbox"]
    assert sandbox["connect"] == [{"address": None, "port": 80}, {"address": "::1", "port": None}]
    assert sandbox["listen"] == ANY


def test_limits_travel_in_bytes_and_nanoseconds(directory: Path) -> None:
    message = start(directory, ephemeral=True, threads=["3"], warmup=["9"], max_boot_time=["2"], hot_pages=["5"])
    assert (message["threads"], message["boot_time_ns"], message["request_time_ns"]) == (3, 2 * 10**9, 8 * 10**9)
    assert message["warmup"]["count"] == 9
    assert (message["serve"]["hot_pages"], message["serve"]["drain_time_ns"]) == (5, 10 * 10**9)
    assert message["sandbox"]["max_main_memory"] == 8 << 30


def test_a_plain_program_has_no_boot_limit(directory: Path) -> None:
    assert start(directory)["boot_time_ns"] == 0


def test_all_wrong_grants_are_reported(directory: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        start(directory, allow_net=["nowhere"], volume=["missing:/x"])
    first, second = caught.value.problems
    assert first == "--allow-net: cannot resolve host 'nowhere': Name or service not known"
    assert second == f"--volume: '{directory}/missing' does not exist"


def test_the_working_directory_exists_or_lies_in_a_volume(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"--cwd: '/no/where' is not a directory"):
        start(directory, cwd=["/no/where"])
    sandbox = start(directory, cwd=["/no/where"], volume=["/tmp:/no"])["sandbox"]
    assert sandbox["working_directory"] == "/no/where"
    assert sandbox["volumes"] == [{"host": "/tmp", "guest": "/no", "write": False}]


def test_what_is_not_utf8_is_an_error_or_left_out(directory: Path) -> None:
    with pytest.raises(KvmserverError, match="is not valid UTF-8"):
        start(directory, "a\udcff")
    assert plan.without_undecodable({"A": "\udcff", "B": "ü"}) == ({"B": "ü"}, ("A",))
