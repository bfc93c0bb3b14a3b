"""Grants: what the words mean, including every mistake that a rival is known to have made (K numbers)."""

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver import permissions
from kvmserver.permissions import HostRule, NetRule, Volume


def no_names(host: str) -> list[str]:
    raise OSError(-2, "Name or service not known")


def test_k01_a_trailing_slash_makes_no_difference() -> None:
    assert permissions.path_grant(("/dir/",), "/cwd") == permissions.path_grant(("/dir",), "/cwd") == ("/dir",)


def test_k02_a_narrow_grant_does_not_replace_a_broad_one() -> None:
    # The data plane gets both lists whole: writing below /a must not hide that / may be read.
    assert permissions.path_grant(True, "/cwd") == ("/",)
    assert permissions.path_grant(("/a",), "/cwd") == ("/a",)


def test_k03_all_addresses_of_a_name_are_kept() -> None:
    found = ["2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::1"]
    rules = permissions.net_grant(("example.org:443",), lambda host: found)
    assert rules == tuple(NetRule(address, 443) for address in dict.fromkeys(found))


def test_k03_two_ipv6_grants_are_both_usable() -> None:
    """K3: neither takes the place of the other."""
    rules = permissions.net_grant(("[2001:db8::1]:80", "2001:db8::2"), no_names)
    assert rules == (NetRule("2001:db8::1", 80), NetRule("2001:db8::2", None))


def test_k26_a_granted_variable_that_is_not_set_is_simply_absent() -> None:
    """K26, as the tests below: every finding about the command line."""
    assert "NOPE" not in dict(permissions.guest_environment({}, ("NOPE",), ()))


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "a,,b", " ", "a, ,b"])
def test_k26_an_empty_value_never_means_everything(text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        permissions.split_words(text)


def test_k26_a_volume_is_host_then_guest() -> None:
    assert permissions.parse_volume("/tmp:/data:rw") == Volume("/tmp", "/data", True)
    assert permissions.parse_volume("src:/app") == Volume("src", "/app", False)


def test_k26_a_port_alone_means_that_port_of_both_families() -> None:
    assert permissions.net_grant((":8000",), no_names) == (NetRule(None, 8000),)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[::1]:80", HostRule("::1", 80)),
        ("[::1]", HostRule("::1", None)),
        ("::1", HostRule("::1", None)),
        ("::", HostRule("::", None)),
        ("127.0.0.1:65535", HostRule("127.0.0.1", 65535)),
        ("db.example_1.internal:1", HostRule("db.example_1.internal", 1)),
        ("localhost", HostRule("localhost", None)),
    ],
)
def test_k26_every_form_of_an_address(text: str, rule: HostRule) -> None:
    assert permissions.parse_host_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", ":", ":0", ":65536", "a:", "a:http", "a:+1", "a:\uff11", "[::1", "[::1]80", "[a]", "::g", "fe80::1%eth0"],
)
def test_an_impossible_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        permissions.parse_host_rule(text)


@pytest.mark.parametrize("text", ["a b", "-a", "a-", "a..b", "http://a", "a/b", "*"])
def test_an_impossible_host_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        permissions.parse_host_rule(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_any_address_and_port_reads_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    assert permissions.net_grant((text,), no_names) == (NetRule(str(address), port),)


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert permissions.parse_host_rule(text) != HostRule(None, None)


def test_an_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="cannot resolve host 'nowhere': Name or service not known"):
        permissions.net_grant(("nowhere",), no_names)


def test_the_system_resolver_knows_numeric_addresses() -> None:
    assert permissions.resolve_with_system("127.0.0.1") == ["127.0.0.1"]


@given(st.lists(st.sampled_from(["a", "b.c", ".", "..", "", "x y"]), min_size=1, max_size=8), st.booleans())
def test_granted_paths_are_absolute_and_normal(parts: list[str], absolute: bool) -> None:
    path = ("/" if absolute else "") + "/".join(parts)
    if not path:
        return
    result = permissions.absolute_path(path, "/home/user")
    assert result.startswith("/")
    assert result == "/" or not result.endswith("/")
    assert not {"", ".", ".."} & set(result[1:].split("/")) or result == "/"
    assert permissions.absolute_path(result, "/elsewhere") == result


def test_relative_paths_belong_to_the_given_directory() -> None:
    assert permissions.path_grant(("data", "../other", "./data/"), "/srv/app") == ("/srv/app/data", "/srv/other")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_an_impossible_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        permissions.absolute_path(path, "/")


@pytest.mark.parametrize("text", ["", "a", "a:b:c:d", "a:/b:w", "a:/b:", ":/b", "a:b", "a:"])
def test_an_impossible_volume_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        permissions.parse_volume(text)


def test_volumes_become_absolute_and_may_not_collide() -> None:
    volumes = (Volume("src", "/app/", False), Volume("/tmp/", "/data", True))
    assert permissions.resolve_volumes(volumes, "/w") == (
        Volume("/w/src", "/app", False),
        Volume("/tmp", "/data", True),
    )
    with pytest.raises(ValueError, match="two volumes for the guest path '/app'"):
        permissions.resolve_volumes((volumes[0], Volume("x", "/app", False)), "/w")


def test_without_grants_a_guest_gets_what_a_program_needs_to_start() -> None:
    environment = dict(permissions.guest_environment({"HOME": "/root", "SECRET": "x"}, False, ()))
    assert environment == {"PATH": permissions.BASE_ENVIRONMENT["PATH"], "HOME": "/root", "LANG": "C.UTF-8"}


def test_granted_names_and_prefixes_are_copied() -> None:
    host = {"A": "1", "AB": "2", "B": "3", "PATH": "/bin"}
    assert dict(permissions.guest_environment(host, ("A*",), ())).keys() == {"PATH", "HOME", "LANG", "A", "AB"}
    assert dict(permissions.guest_environment(host, ("A",), ())).keys() == {"PATH", "HOME", "LANG", "A"}
    assert dict(permissions.guest_environment(host, True, ())).keys() == {"PATH", "HOME", "LANG", "A", "AB", "B"}


def test_later_variables_win_and_none_is_there_twice() -> None:
    extra = (("A", "x"), ("A", "y"), ("PATH", "/p"))
    environment = permissions.guest_environment({"A": "1"}, True, extra)
    assert dict(environment)["A"] == "y"
    assert dict(environment)["PATH"] == "/p"
    assert len(environment) == len(dict(environment))


def test_a_variable_needs_a_name_and_an_equals_sign() -> None:
    assert permissions.parse_variable("A=b=c") == ("A", "b=c")
    assert permissions.parse_variable("A=") == ("A", "")
    for text in ("A", "=b", "", "A=\0"):
        with pytest.raises(ValueError, match=r"NAME=VALUE|NUL"):
            permissions.parse_variable(text)


@pytest.mark.parametrize("pattern", ["", "A*B", "**", "A=B", "*A", "A\0"])
def test_an_impossible_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="PREFIX"):
        permissions.check_variable_pattern(pattern)
