"""The option table is complete: every row can be shown, documented and given on the command line."""

import pytest

from kvmserver import options
from kvmserver.options import BARE, GROUPS, ROW_OF_NAME, ROWS, Kind, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_a_group_a_sentence_and_a_metavar(row: Row) -> None:
    assert row.opt.group in GROUPS
    assert row.opt.help.endswith((".", "(repeatable).")) or row.opt.help.endswith(").")
    assert bool(row.opt.metavar) is (row.opt.kind is not Kind.FLAG)
    assert row.flag_name == f"--{row.name}"
    assert "_" not in row.name


def test_the_options_of_the_issue_exist() -> None:
    names = "ephemeral threads warmup cwd env verbose verbose-syscalls allow-all allow-read allow-write allow-env"
    names += " allow-net allow-connect allow-listen volume max-boot-time max-request-time max-main-memory"
    names += " max-storage-time listen protocol proxy-protocol proxy-headers request-buffer response-buffer"
    names += " connection-memory max-header-size fast-path"
    names += " max-body-size header-timeout body-timeout idle-timeout write-timeout queue-time server-timing"
    names += " max-address-space max-request-memory limit-request-memory hot-pages vms-per-process verify-reset"
    names += " busy-poll"
    assert set(names.split()) | {"warmup-request"} == set(ROW_OF_NAME)


def test_short_names_are_unique() -> None:
    shorts = [row.opt.short for row in ROWS if row.opt.short]
    assert sorted(shorts) == sorted({*shorts})


def test_words_of_the_command_line_become_values_of_the_file() -> None:
    assert options.from_command_line(ROW_OF_NAME["allow-read"], [BARE]) is True
    assert options.from_command_line(ROW_OF_NAME["allow-read"], ["a,b", "c"]) == ["a", "b", "c"]
    assert options.from_command_line(ROW_OF_NAME["env"], ["A=1,2", "B=3"]) == ["A=1,2", "B=3"]
    assert options.from_command_line(ROW_OF_NAME["threads"], ["1", "2"]) == "2"
    assert options.from_command_line(ROW_OF_NAME["ephemeral"], False) is False
