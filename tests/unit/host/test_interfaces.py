"""Which of a machine's addresses a peer could reach."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ifaddr
import pytest

from tunnel.host import interfaces


def adapter(name: str, *addresses: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, ips=[SimpleNamespace(ip=address, network_prefix=24) for address in addresses])


def test_tunnels_of_our_own_and_what_nobody_reaches_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        adapter("lo", "127.0.0.1"),
        adapter("eth0", "192.168.1.5", "169.254.169.254"),
        adapter("ptunnel0", "10.86.0.1"),
        adapter("wg0", "10.1.0.1"),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: found)
    monkeypatch.setattr(interfaces, "_is_up", lambda name: True)
    assert [each.address for each in interfaces.local_addresses()] == ["192.168.1.5", "10.1.0.1"]
    assert [each.address for each in interfaces.local_addresses(exclude=["wg0"])] == ["192.168.1.5"]


def test_addresses_of_other_overlays_are_offered_only_where_there_are_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """WireGuard's interface, one of a program (nebula, OpenVPN, ZeroTier), some of the kernel (GRE, VXLAN, L2TP, IPsec), modems
    without a hardware address, the IPv6 of a provider (SIT), a bridge, and a wire."""
    for name, uevent, is_tun, kind in (
        ("eth0", "", False, 1),
        ("br0", "DEVTYPE=bridge\n", False, 1),
        ("wg0", "DEVTYPE=wireguard\n", False, 65534),
        ("flannel.1", "DEVTYPE=vxlan\n", False, 1),
        ("gre1", "", False, 778),
        ("nebula1", "", True, 65534),
        ("l2tp0", "DEVTYPE=l2tpeth\n", False, 1),
        ("ipsec0", "", False, 65534),
        ("wwan0", "DEVTYPE=wwan\n", False, 65534),
        ("usb0", "", False, 65534),
        ("he-ipv6", "", False, 776),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
        (tmp_path / name / "uevent").write_text(f"INTERFACE={name}\n{uevent}")
        if is_tun:
            (tmp_path / name / "tun_flags").write_text("0x1001\n")
    (tmp_path / "usb0" / "device").mkdir()
    monkeypatch.setattr(interfaces, "_INTERFACES", tmp_path)
    monkeypatch.setattr(interfaces, "_is_up", lambda name: True)
    overlays = [
        adapter("wg0", "10.1.0.1"),
        adapter("nebula1", "10.8.0.3"),
        adapter("gre1", "10.7.0.3"),
        adapter("flannel.1", "10.6.0.3"),
        adapter("l2tp0", "10.5.0.3"),
        adapter("ipsec0", "10.4.0.3"),
    ]
    wires = [
        adapter("eth0", "192.168.1.5"),
        adapter("wwan0", "10.99.0.2"),
        adapter("usb0", "10.96.0.2"),
        adapter("none", "10.98.0.2"),
        adapter("he-ipv6", "2001:db8::2"),
        adapter("br0", "10.97.0.2"),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [*overlays, *wires])
    assert [each.address for each in interfaces.local_addresses(overlays=False)] == [ip.ip for each in wires for ip in each.ips]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: overlays)
    assert [each.address for each in interfaces.local_addresses(overlays=False)] == [
        "10.1.0.1",
        "10.8.0.3",
        "10.7.0.3",
        "10.6.0.3",
        "10.5.0.3",
        "10.4.0.3",
    ]


@pytest.mark.parametrize(
    ("name", "description", "is_overlay"),
    [
        ("utun4", "", True),
        ("{8D9B}", "WireGuard Tunnel", True),
        ("{11}", "Wintun Userspace Tunnel", True),
        ("feth1234", "", True),
        ("{12}", "Radmin VPN", True),
        ("en0", "Wi-Fi", False),
    ],
)
def test_elsewhere_overlays_are_known_by_their_names(
    name: str, description: str, is_overlay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert interfaces.is_overlay(name, description) is is_overlay


def test_where_the_names_of_interfaces_cannot_be_read_the_routes_tell_our_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux takes any bytes for a name; ifaddr reads UTF-8, and the locale's codec writes it."""

    def unreadable() -> list[Any]:
        b"\xff0".decode()
        return []

    monkeypatch.setattr(ifaddr, "get_adapters", unreadable)
    monkeypatch.setattr(interfaces, "source_address", {"192.0.2.1": "192.168.1.5", "2001:db8::1": None}.get)
    assert interfaces.local_addresses(overlays=False) == [interfaces.LocalAddress("192.168.1.5", "", False, 24)]
    assert interfaces.own_addresses() == ["127.0.0.1", "::1", "192.168.1.5"]


def test_tables_of_the_kernel_are_read_whatever_bytes_are_in_them(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    row = b"fe8000000000000094d2c4fffeee42e4 03 40 20 %02x      %s\n"
    table.write_bytes(row % (0xC0, "b\u00fcro0".encode()) + row.replace(b"e4", b"e5") % (0x80, b"\xff0"))
    assert interfaces.unusable_in(interfaces.kernel_text(table)) == {"fe80::94d2:c4ff:feee:42e4"}
    assert interfaces.kernel_text(tmp_path / "none") == ""
