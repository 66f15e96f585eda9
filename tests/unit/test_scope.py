"""Who may name which address as a target."""

from __future__ import annotations

import pytest

from tunnel.core.scope import is_local, may_name

LOCAL = ("10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "127.0.0.1", "fd12::1", "fe80::1%eth0", "::1",
         "::ffff:192.168.1.1")  # fmt: skip
PUBLIC = ("203.0.113.5", "198.51.100.1", "172.32.0.1", "100.128.0.1", "2001:db8::1", "8.8.8.8", "::ffff:8.8.8.8")


@pytest.mark.parametrize("host", LOCAL)
def test_an_address_of_a_local_network_is_no_business_of_somebody_on_the_internet(host: str) -> None:
    assert is_local(host)
    assert not may_name("203.0.113.5", host)
    assert may_name("192.168.7.7", host)
    assert may_name(host, host)


@pytest.mark.parametrize("host", PUBLIC)
def test_a_public_address_may_be_named_by_anybody(host: str) -> None:
    assert not is_local(host)
    assert may_name("203.0.113.5", host)
    assert may_name("192.168.7.7", host)
