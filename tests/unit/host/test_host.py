"""What the machine tells about itself."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time

import pytest

from tunnel.host import clock, cpu, interfaces, limits


def test_the_clock_never_goes_back_and_keeps_the_pace_of_the_monotonic_one() -> None:
    began, reference = clock.boottime(), time.monotonic()
    time.sleep(0.01)
    assert clock.boottime() - began == pytest.approx(time.monotonic() - reference, abs=0.05)
    assert clock.wall_ns() > 1_700_000_000 * 10**9


def test_without_boottime_the_clock_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_pick_clock", lambda: None)
    assert clock._make_clock()() == pytest.approx(time.monotonic(), abs=1)


def test_local_addresses_are_ones_a_peer_could_use() -> None:
    for local in interfaces.local_addresses():
        address = ipaddress.ip_address(local.address)
        assert local.is_ipv6 == (address.version == 6)
        assert not address.is_loopback
        assert not address.is_multicast
        assert not (local.is_ipv6 and address.is_link_local)
        assert 0 <= local.prefix <= address.max_prefixlen
    names = {local.interface for local in interfaces.local_addresses()}
    assert interfaces.local_addresses(exclude=names) == []


def test_ipv6_that_is_tentative_deprecated_or_a_duplicate_is_left_out() -> None:
    table = """fd00000000000000000000000000000a 02 40 00 80 eth0
fd00000000000000000000000000000b 02 40 00 c0 eth0
fd00000000000000000000000000000c 02 40 00 20 eth0
fd00000000000000000000000000000d 02 40 00 88 eth0
rubbish
"""
    assert interfaces.unusable_in(table) == {"fd00::b", "fd00::c", "fd00::d"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "224.0.0.1", "0.0.0.0", "169.254.169.254", "fe80::1", "::ffff:1.2.3.4", "x"]
)
def test_addresses_that_lead_nowhere_are_unusable(host: str) -> None:
    assert not interfaces._is_usable(host)


def test_the_way_to_loopback_is_no_address_for_a_peer() -> None:
    assert interfaces.source_address("127.0.0.1") is None


def test_aes_is_read_from_cpuinfo() -> None:
    assert cpu.aes_in("processor\t: 0\nflags\t\t: fpu sse2 aes avx\n") is True
    assert cpu.aes_in("Features\t: half thumb neon\n") is False
    assert cpu.aes_in("Features\t: fp asimd aes pmull\n") is True
    assert cpu.aes_in("flags : aesni\n") is False
    assert cpu.aes_in("nothing: of use\n") is None
    assert cpu.has_aes() in (True, False)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    code = """if True:
        import resource
        from tunnel.host.limits import raise_descriptor_limit
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
        assert raise_descriptor_limit() == 200, hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    assert limits.raise_descriptor_limit() >= 64


def test_the_doors_import_on_systems_that_are_not_linux() -> None:
    code = """if True:
        import sys, socket
        sys.platform = "darwin"
        for missing in ("fcntl", "resource", "msvcrt", "pyroute2"):
            sys.modules[missing] = None
        import trio
        import tunnel.doors.udp.socket, tunnel.doors.udp.plain, tests.twins.udp, tunnel.state.home
        import tunnel.host.clock, tunnel.host.interfaces, tunnel.host.cpu, tunnel.host.limits
        assert type(tunnel.doors.udp.socket.open_socket("127.0.0.1", 0)).__name__ == "PlainSocket"
        assert "tunnel.doors.udp.linux" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", "import trio, sys\n" + code], check=True)
