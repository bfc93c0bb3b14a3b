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
    assert message["serve"]["busy_poll_ns"] == 100_000
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


def two_programs(directory: Path, one_to_one: bool | None = None, **given: Any) -> dict[str, Any]:
    options = {name.replace("_", "-"): words for name, words in given.items()}
    storage = Given("keeper", ("x",), {"allow-connect": ["127.0.0.1:6379"], "env": ["A=1"]}, one_to_one)
    run = Given("tool", (), {"allow-listen": [":8000"]})
    return message_of(config.load(options, Path(os.devnull), run, storage), directory)


def test_without_a_storage_program_there_is_no_gate(directory: Path) -> None:
    message = start(directory)
    assert message["storage"] is None
    assert message["sandbox"]["gate"] is None


def test_two_programs_have_their_own_rights_and_ends_of_the_gate(directory: Path) -> None:
    message = two_programs(directory, threads=["3"], allow_all=True, max_storage_time=["250ms"])
    storage, run = message["storage"], message["sandbox"]
    assert (storage["program"], message["program"]) == ("keeper", "tool")
    assert (storage["max_call_time_ns"], storage["boot_time_ns"]) == (250_000_000, 20 * 10**9)
    assert storage["one_to_one"] is False
    assert (storage["sandbox"]["gate"], run["gate"]) == ({"role": "storage", "lanes": 3}, {"role": "caller"})
    assert (storage["sandbox"]["program"], storage["sandbox"]["arguments"]) == ("/bin/keeper", ["x"])
    assert storage["sandbox"]["connect"] == [{"address": "127.0.0.1", "port": 6379}]
    assert ["A", "1"] in storage["sandbox"]["environment"]
    assert ["A", "1"] not in run["environment"]
    assert (run["connect"], run["listen"]) == ([], [{"address": None, "port": 8000}])
    assert storage["sandbox"].keys() == run.keys()


def test_one_to_one_has_one_lane(directory: Path) -> None:
    storage = two_programs(directory, one_to_one=True, threads=["3"])["storage"]
    assert (storage["one_to_one"], storage["sandbox"]["gate"]["lanes"]) == (True, 1)


def test_a_mistake_that_both_inherit_is_told_once(directory: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        two_programs(directory, volume=["missing:/x"], allow_connect=["nowhere"])
    assert sorted(caught.value.problems) == [
        "--allow-connect: cannot resolve host 'nowhere': Name or service not known",
        f"--volume: '{directory}/missing' does not exist",
    ]


def test_what_is_not_utf8_is_an_error_for_the_storage_program_too(directory: Path) -> None:
    merged = config.load({}, Path(os.devnull), Given("tool"), Given("keeper", ("\udcff",)))
    with pytest.raises(KvmserverError, match="is not valid UTF-8"):
        message_of(merged, directory)
