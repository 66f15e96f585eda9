"""What an interface may be given, what crosses to the privileged child, and which routes count as taken."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tun import routes
from tunnel.doors.tun.config import MAX_MTU, MIN_MTU, InterfaceConfig
from tunnel.doors.tun.configure import set_mtu
from tunnel.doors.tun.device import from_descriptor, open_tap
from tunnel.doors.tun.routes import name_servers, overlapping, taken_prefixes
from tunnel.errors import ConfigurationError

GOOD: dict[str, Any] = {
    "name": "ptunnel0",
    "mac": "02:70:74:00:00:03",
    "ipv4": ("10.77.1.3", 24),
    "ipv6": (("fd12:3456:789a::3", 64), ("fe80::7074:0:0:3", 64)),
    "mtu": 1400,
    "routes": ("224.0.2.60/32",),
}


def test_a_configuration_survives_json() -> None:
    config = InterfaceConfig(**GOOD)
    assert InterfaceConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("route", ["224.0.0.0/4", "239.1.2.3", "255.255.255.255/32", "ff05::/16"])
def test_what_is_for_everybody_may_be_routed_into_the_lan(route: str) -> None:
    assert InterfaceConfig(**{**GOOD, "routes": (route,)}).routes == (route,)


def test_an_interface_may_be_of_one_family_alone() -> None:
    assert InterfaceConfig(mac=GOOD["mac"], ipv4=None, ipv6=GOOD["ipv6"]).ipv4 is None
    assert InterfaceConfig(mac=GOOD["mac"], ipv4=GOOD["ipv4"]).ipv6 == ()


def test_networks_are_the_subnets_of_all_addresses() -> None:
    assert [str(network) for network in InterfaceConfig(**GOOD).networks] == ["10.77.1.0/24", "fd12:3456:789a::/64", "fe80::/64"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": ".."},
        {"name": "x" * 16},
        {"name": "eth0 up"},
        {"name": "%d%d"},
        {"mac": "01:70:74:00:00:03"},
        {"mac": "00:70:74:00:00:03"},
        {"mac": "02:70:74"},
        {"mtu": MIN_MTU - 1},
        {"mtu": MAX_MTU + 1},
        {"mtu": True},
        {"mtu": 1400.0},
        {"txqueuelen": 0},
        {"gso_max_size": 65_537},
        {"gso_max_segs": -1},
        {"ipv4": ("8.8.8.8", 24)},
        {"ipv4": ("10.77.1.0", 24)},
        {"ipv4": ("10.77.1.255", 24)},
        {"ipv4": ("10.77.1.3", 8)},
        {"ipv4": ("10.77.1.3", 31)},
        {"ipv4": ("here", 24)},
        {"ipv6": (("2a00::1", 64),)},
        {"ipv6": (("fe80::1%eth0", 64),)},
        {"ipv6": (("fd00::1", 7),)},
        {"ipv6": (("fd00::1", 64),) * 9},
        {"routes": ("0.0.0.0/0",)},
        {"any_subnet": 1},
        {"routes": ("224.0.0.0/3",)},
        {"routes": ("192.168.1.0/24",)},
        {"routes": ("255.255.255.254/31",)},
        {"routes": ("2000::/3",)},
        {"routes": ("somewhere",)},
        {"routes": ("224.0.2.60/32",) * 17},
    ],
)
def test_what_no_lan_interface_may_have_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        InterfaceConfig(**{**GOOD, **change})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from([*sorted(GOOD), "unknown"]))
def test_any_json_is_a_configuration_or_a_configuration_error(value: object, field: str) -> None:
    for candidate in (value, {**GOOD, field: value}):
        with contextlib.suppress(ConfigurationError):
            assert isinstance(InterfaceConfig.from_json(candidate), InterfaceConfig)


def test_an_mtu_out_of_bounds_never_reaches_the_kernel() -> None:
    with pytest.raises(ConfigurationError, match="1280 to 65521"):
        set_mtu("lo", 68)


def test_a_descriptor_that_is_no_tap_is_refused() -> None:
    with open("/dev/null", "rb") as file, pytest.raises(ConfigurationError, match="no TAP"):
        from_descriptor(file.fileno())


def test_a_name_too_long_for_an_interface_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        open_tap("x" * 16)


def test_taken_prefixes_are_private_and_not_nested() -> None:
    taken = taken_prefixes()
    assert taken == sorted(set(taken), key=taken.index)
    assert not {"0.0.0.0/0", "127.0.0.0/8"} & set(taken)


def test_name_servers_are_taken_and_rubbish_is_none(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(b"search home\n  nameserver 10.0.0.53\nnameserver fd00::1\nnameserver fe80::1%eth0\n#nameserver 10.0.0.9\n"
                     b"nameserver 10.0.0\nnameserver \xff\n")  # fmt: skip
    found = name_servers([str(file), str(tmp_path / "none")])
    assert {str(network) for network in found} == {"10.0.0.53/32", "fd00::1/128", "fe80::1/128"}
    assert overlapping(ipaddress.ip_network("10.0.0.0/24"), found) == ipaddress.ip_network("10.0.0.53/32")
    assert overlapping(ipaddress.ip_network("10.0.1.0/24"), found) is None


def test_far_ends_of_sockets_are_read_as_the_kernel_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def word(*parts: int) -> str:
        return f"{int.from_bytes(bytes(parts), sys.byteorder):08X}"

    nothing = word(0, 0, 0, 0)
    far = [word(10, 1, 2, 3), word(9, 9, 9, 9), nothing, word(198, 19, 7, 7)]
    far.append(word(0xFD, 1, 2, 3) + word(0, 0, 0, 4) + nothing + word(0, 0, 0, 5))
    far.append(word(0x20, 1, 2, 3) + 3 * nothing)
    far.append(2 * nothing + word(0, 0, 255, 255) + word(172, 16, 1, 1))
    rubbish = ["", "x", "  0: 00000000:0000", "  0: a zzzz:1 01", "  0: a 123:1 01"]
    assert {str(network) for text in far for network in routes._private_network(text)} == {
        f"10.1.2.0/{routes.SPOKEN_BITS}", f"198.19.7.0/{routes.SPOKEN_BITS}", f"fd01:203:0:4::/{routes.SPOKEN_IPV6_BITS}",
        f"172.16.1.0/{routes.SPOKEN_BITS}",
    }  # fmt: skip
    lines = ["  sl  local_address rem_address", *rubbish, *(f"   1: 00000000:0016 {text}:1234 01 00" for text in far)]
    table = tmp_path / "tcp"
    table.write_text("\n".join(lines))
    monkeypatch.setattr(routes, "SOCKET_TABLES", (str(table), str(tmp_path / "none")))
    assert len(routes.spoken_with()) == 4
    table.write_text(
        "heading\n" + " " * routes.MAX_SOCKET_TABLE + "\n" + "\n".join(lines)
    )  # a machine with that many is not read on
    assert routes.spoken_with() == set()


def test_short_prefixes_are_ways_to_everything_and_the_room_goes_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = [ipaddress.ip_network(f"10.0.0.0/{routes.SHORTEST_PREFIX}")]
    shortest.append(ipaddress.ip_network(f"fd00:1:2::/{routes.SHORTEST_IPV6_PREFIX}"))
    shorter = [network.supernet() for network in shortest]
    monkeypatch.setattr(routes, "_addresses", lambda: iter(()))
    monkeypatch.setattr(routes, "_routes", lambda: iter([(network, 2) for network in shortest + shorter]))
    monkeypatch.setattr(routes, "RESOLVER_FILES", ())
    assert routes.taken_networks(spoken=False) == set(shortest)
