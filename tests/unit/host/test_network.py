"""A network is recognised by its router."""

from __future__ import annotations

import pytest

from tunnel.host import network
from tunnel.host.gateway import Gateway
from tunnel.host.interfaces import LocalAddress

ARP = """IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         AA:bb:cc:dd:ee:01     *        wlan0
192.168.1.7      0x1         0x0         00:00:00:00:00:00     *        wlan0
192.168.1.8      0x1         rubbish     aa:bb:cc:dd:ee:08     *        wlan0
short
"""


def test_the_routers_hardware_address_is_read_where_the_kernel_knows_it() -> None:
    assert network.hardware_address_in(ARP, "192.168.1.1") == "aa:bb:cc:dd:ee:01"
    for host in ("192.168.1.7", "192.168.1.8", "192.168.1.9", ""):
        assert network.hardware_address_in(ARP, host) == ""
    assert network.hardware_address_in("", "192.168.1.1") == ""


def test_networks_of_the_same_addresses_differ_by_their_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    macs = {"192.168.1.1": "aa:bb:cc:dd:ee:01"}
    monkeypatch.setattr(network, "default_gateway", lambda: Gateway("192.168.1.1", "192.168.1.20"))
    monkeypatch.setattr(network, "local_addresses", lambda: [LocalAddress("192.168.1.20", "wlan0", False, 24)])
    monkeypatch.setattr(network, "hardware_address", lambda host: macs.get(host, ""))
    home = network.network_name(b"secret")
    assert len(home) == network.NAME_SIZE
    assert network.network_name(b"secret") == home
    assert network.network_name(b"another") != home
    monkeypatch.setattr(network, "local_addresses", lambda: [LocalAddress("192.168.1.20", "eth0", False, 24)])
    assert network.network_name(b"secret") == home  # by cable or by air
    macs["192.168.1.1"] = "aa:bb:cc:dd:ee:02"
    assert network.network_name(b"secret") != home


def test_a_machine_without_a_network_has_a_name_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "default_gateway", lambda: None)
    monkeypatch.setattr(network, "local_addresses", list)
    monkeypatch.setattr(network, "source_address", lambda _: None)
    assert len(network.network_name(b"secret")) == network.NAME_SIZE
