"""Which of a machine's addresses a peer could reach."""

from __future__ import annotations

from types import SimpleNamespace

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
