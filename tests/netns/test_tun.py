"""The TAP interface on a real kernel: what it is made into, that frames cross, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tunnel.doors.tun import routes
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.configure import apply, renumber, set_mtu
from tunnel.doors.tun.device import TapDevice, from_descriptor, open_tap
from tunnel.doors.tun.routes import taken_prefixes
from tunnel.doors.tun.tap import HEADROOM, MAX_FRAME, OFFLOAD_CSUM, OFFLOAD_TSO4
from tunnel.errors import ConfigurationError

T = TypeVar("T")
ETHERTYPE_IPV4 = b"\x08\x00"


def config(number: int, **changes: Any) -> InterfaceConfig:
    fields: dict[str, Any] = {
        "name": "lan0",
        "mac": f"02:70:74:00:00:{number:02x}",
        "ipv4": (f"10.77.1.{number}", 24),
        "ipv6": ((f"fd12:3456:789a::{number:x}", 64), (f"fe80::7074:0:0:{number:x}", 64)),
        "mtu": 1400,
        "routes": ("224.0.2.60/32",),
    }
    return InterfaceConfig(**{**fields, **changes})


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace("tun")
    space.ip("link set lo up")
    yield space
    space.close()


@pytest.fixture
def other() -> Iterator[Namespace]:
    space = Namespace("tun-other")
    space.ip("link set lo up")
    yield space
    space.close()


def open_in(space: Namespace, number: int, **changes: Any) -> TapDevice:
    def make() -> TapDevice:
        device = open_tap("lan0")
        assert apply(config(number, **changes)) == []
        return device

    return space.inside(make)


def shown(space: Namespace, *words: str) -> Any:
    return json.loads(space.run("ip", "-json", "-details", *words).stdout or "[]")


def addresses(space: Namespace) -> set[str]:
    return {f"{info['local']}/{info['prefixlen']}" for info in shown(space, "addr", "show", "lan0")[0]["addr_info"]}


def read_frame(device: TapDevice, wanted: Callable[[bytes], bool]) -> bytes:
    """The next frame that is `wanted`; others (IGMP, MLD) are thrown away."""
    view = memoryview(bytearray(MAX_FRAME))

    def next_one() -> bytes | None:
        while length := device.read_into(view):
            if wanted(bytes(view[:length])):
                return bytes(view[:length])
        return None

    return eventually("a frame from the host", next_one)


def is_udp4(frame: bytes) -> bool:
    return frame[22:24] == ETHERTYPE_IPV4 and frame[HEADROOM + 9] == socket.IPPROTO_UDP


def udp4_frame(source: str, target: str, port: int, payload: bytes, mac: bytes) -> list[bytes]:
    """A frame as a member's, in three pieces; the UDP checksum is left out, as IPv4 allows."""
    udp = struct.pack("!HHHH", 5555, port, 8 + len(payload), 0) + payload
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    return [bytes(10), mac + bytes.fromhex("027074000009") + ETHERTYPE_IPV4, header + udp]


def test_the_interface_is_a_broadcasting_one_without_arp_and_has_what_the_configuration_says(space: Namespace) -> None:
    device = open_in(space, 3, gso_max_size=60_000, gso_max_segs=40)
    link = shown(space, "link", "show", "lan0")[0]
    assert {"BROADCAST", "MULTICAST", "NOARP", "UP", "LOWER_UP"} <= set(link["flags"])
    assert (link["address"], link["mtu"], link["txqlen"]) == ("02:70:74:00:00:03", 1400, 500)
    assert (link["gso_max_size"], link["gso_max_segs"]) == (60_000, 40)
    assert addresses(space) == {"10.77.1.3/24", "fd12:3456:789a::3/64", "fe80::7074:0:0:3/64"}
    infos = shown(space, "addr", "show", "lan0")[0]["addr_info"]
    assert infos[0]["broadcast"] == "10.77.1.255"
    assert not any(info.get("tentative") for info in infos)
    assert "224.0.2.60" in {route["dst"] for route in shown(space, "route", "show", "dev", "lan0")}
    assert device.offloads & (OFFLOAD_CSUM | OFFLOAD_TSO4)
    device.close()


def test_nothing_is_forwarded_from_the_lan_and_no_router_is_believed(space: Namespace) -> None:
    space.sysctl("net.ipv4.ip_forward", 1)
    device = open_in(space, 3)

    def read(path: str) -> str:
        with open(f"/proc/sys/net/{path}", encoding="ascii") as file:
            return file.read().strip()

    for path in ("ipv4/conf/lan0/forwarding", "ipv6/conf/lan0/accept_ra", "ipv4/conf/lan0/accept_redirects"):
        assert space.inside(lambda path=path: read(path)) == "0", path
    device.close()


def test_closing_the_descriptor_takes_interface_addresses_and_routes_away(space: Namespace) -> None:
    before = shown(space, "route", "show", "table", "all")
    device = open_in(space, 3)
    assert shown(space, "route", "show", "table", "all") != before
    device.close()
    eventually("the interface is gone", lambda: [link["ifname"] for link in shown(space, "link")] == ["lo"])
    assert shown(space, "route", "show", "table", "all") == before


def test_applying_twice_changes_nothing_and_renumbering_leaves_no_old_address(space: Namespace) -> None:
    device = open_in(space, 3)
    before = addresses(space)
    assert space.inside(lambda: apply(config(3))) == []
    assert addresses(space) == before
    new = config(3, ipv4=("10.99.4.3", 24), ipv6=(("fd99:1::3", 64), ("fe80::7074:0:0:3", 64)))
    assert space.inside(lambda: renumber(new)) == []
    assert addresses(space) == {"10.99.4.3/24", "fd99:1::3/64", "fe80::7074:0:0:3/64"}
    assert {route["dst"] for route in shown(space, "route", "show", "dev", "lan0")} == {"10.99.4.0/24", "224.0.2.60"}
    device.close()


def test_the_mtu_follows_and_leaves_ipv6_in_place(space: Namespace) -> None:
    device = open_in(space, 3)
    before = addresses(space)
    for mtu in (1280, 9000, 1372):
        space.inside(lambda mtu=mtu: set_mtu("lan0", mtu))
        assert shown(space, "link", "show", "lan0")[0]["mtu"] == mtu
    assert addresses(space) == before
    device.close()


def test_ipv6_switched_off_is_a_fact_and_no_failure(space: Namespace) -> None:
    for scope in ("all", "default"):
        space.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)

    def make() -> tuple[TapDevice, list[str]]:
        return open_tap("lan0"), apply(config(3))

    device, facts = space.inside(make)
    assert facts == ["IPv6 is switched off on this machine, so the LAN is IPv4 only here."]
    assert addresses(space) == {"10.77.1.3/24"}
    assert "UP" in shown(space, "link", "show", "lan0")[0]["flags"]
    device.close()


def test_a_name_that_is_taken_gets_a_number(space: Namespace) -> None:
    devices = space.inside(lambda: [open_tap("lan"), open_tap("lan"), open_tap("lan%d")])
    assert [device.name for device in devices] == ["lan", "lan0", "lan1"]
    for device in devices:
        device.close()


def test_a_datagram_to_any_neighbour_is_read_without_one_word_of_arp(space: Namespace) -> None:
    device = open_in(space, 3)
    with space.socket() as sender:
        sender.sendto(b"hello", ("10.77.1.9", 7777))
        frame = read_frame(device, lambda frame: frame[22:24] != b"\x86\xdd")
        assert is_udp4(frame), "the first IPv4 frame is the datagram itself"
        assert frame.endswith(b"hello")
        assert frame[10:16] == bytes.fromhex("027074000003")
    device.close()


def test_the_mac_address_of_a_frame_says_nothing_about_broadcast(space: Namespace) -> None:
    device = open_in(space, 3, routes=("239.0.0.0/8",))
    with space.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.bind(("10.77.1.3", 0))
        found = []
        for target in ("10.77.1.9", "10.77.1.255", "255.255.255.255", "239.1.2.3"):
            sender.sendto(b"x", (target, 7777))
            found.append(read_frame(device, is_udp4)[10:16].hex())
    assert found == ["027074000003", "027074000003", "027074000003", "01005e010203"]
    device.close()


def test_ipv6_needs_no_neighbour_discovery_either(space: Namespace) -> None:
    device = open_in(space, 3)
    scope = space.inside(lambda: socket.if_nametoindex("lan0"))
    with space.socket(socket.AF_INET6) as sender:
        for target in (("fd12:3456:789a::9", 7777), ("fe80::7074:0:0:9", 7777, 0, scope)):
            sender.sendto(b"six", target)
            frame = read_frame(device, lambda frame: frame[22:24] == b"\x86\xdd" and frame[HEADROOM + 6] != 0)
            assert frame[HEADROOM + 6] == socket.IPPROTO_UDP, "no neighbour solicitation came before"
    device.close()


@pytest.mark.parametrize(
    ("target", "mac"),
    [
        ("10.77.1.3", "027074000003"),
        ("10.77.1.255", "ffffffffffff"),
        ("255.255.255.255", "ffffffffffff"),
        ("255.255.255.255", "027074000003"),
    ],
)
def test_a_written_frame_reaches_a_program(space: Namespace, target: str, mac: str) -> None:
    device = open_in(space, 3)
    with space.socket() as receiver:
        receiver.settimeout(5)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        receiver.bind(("0.0.0.0", 7777))
        assert device.writev(udp4_frame("10.77.1.9", target, 7777, b"from afar", bytes.fromhex(mac)))
        assert receiver.recvfrom(100) == (b"from afar", ("10.77.1.9", 5555))
    device.close()


def test_what_the_kernel_refuses_is_counted(space: Namespace) -> None:
    device = open_in(space, 3)
    assert device.writev([b"short"])
    assert device.writev([bytes([1, 9]) + bytes(8), bytes(64)])  # no such gso_type
    assert device.errors == {"EINVAL": 2}
    space.ip("link set lan0 down")
    assert device.writev(udp4_frame("10.77.1.9", "10.77.1.3", 7, b"", bytes(6)))
    assert device.errors["EIO"] == 1
    device.close()


def test_a_descriptor_from_another_process_is_the_same_device(space: Namespace) -> None:
    first = open_in(space, 3)
    device = from_descriptor(os.dup(first.fileno()))
    assert (device.name, device.offloads) == (first.name, first.offloads)
    first.close()
    assert "lan0" in [link["ifname"] for link in shown(space, "link")]
    device.close()


def test_a_tap_of_another_kind_is_refused(space: Namespace) -> None:
    fd = space.tap("plain")
    with pytest.raises(ConfigurationError, match="another kind"):
        from_descriptor(fd)
    os.close(fd)


def test_a_deleted_interface_is_an_error_of_its_own(space: Namespace) -> None:
    device = open_in(space, 3)
    space.ip("link del lan0")
    with pytest.raises(trio.BrokenResourceError):
        device.read_into(memoryview(bytearray(MAX_FRAME)))
    with pytest.raises(trio.BrokenResourceError):
        device.writev([bytes(100)])
    device.close()
    device.close()
    with pytest.raises(trio.ClosedResourceError):
        device.writev([bytes(100)])


async def test_a_reader_wakes_when_the_host_sends_and_when_the_device_is_closed(space: Namespace) -> None:
    device = open_in(space, 3, ipv6=())
    view = memoryview(bytearray(MAX_FRAME))
    heard = trio.Event()
    waits: list[str] = []

    async def read() -> None:
        try:
            while True:
                while length := device.read_into(view):
                    if is_udp4(bytes(view[:length])):
                        heard.set()
                await device.wait_readable()
        except trio.ClosedResourceError:
            waits.append("closed")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with space.socket() as sender:
                await trio.testing.wait_all_tasks_blocked()
                sender.sendto(b"hello", ("10.77.1.9", 7777))
            await heard.wait()
            await trio.testing.wait_all_tasks_blocked()
            device.close()
    assert waits == ["closed"]


def test_taken_prefixes_leave_our_own_out(space: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    space.ip(
        "link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add 192.168.7.2/24 dev eth0\n"
        "route add default via 192.168.7.1\nroute add 172.20.0.0/16 via 192.168.7.1\nroute add 44.0.0.0/8 via 192.168.7.1\n"
        "route add unreachable 10.50.0.0/24 table 77\nroute add 0.0.0.0/1 via 192.168.7.1"
    )
    device = open_in(space, 3)
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 10.20.30.40\nnameserver 10.77.1.9\nnameserver 9.9.9.9\n")  # the second is a member
    monkeypatch.setattr(routes, "RESOLVER_FILES", (str(resolv_conf),))
    assert space.inside(lambda: taken_prefixes("lan0")) == [
        "10.20.30.40/32", "10.50.0.0/24", "172.20.0.0/16", "192.168.7.0/24",
    ]  # fmt: skip
    assert "10.77.1.0/24" in space.inside(taken_prefixes)
    device.close()


@pytest.mark.parametrize("network", ["10.77.1.128/25", "10.77.0.0/16", "fd12:3456:789a::/64", "fd12:3456:789a::/48"])
@pytest.mark.parametrize("kind", ["address", "route"])
def test_a_network_that_this_machine_has_is_not_led_into_the_lan(space: Namespace, network: str, kind: str) -> None:
    """Whoever makes a room must not get what is for a member's router, name server or printer."""
    space.ip("link add eth9 type veth peer name eth8")
    space.ip("link set eth9 up")
    space.ip("link set eth8 up")
    host = str(ipaddress.ip_network(network)[9])
    if kind == "address":
        space.ip(f"addr add {host}/{network.partition('/')[2]} dev eth9 nodad")
    else:
        space.ip(f"route add {network} dev eth9")

    def make() -> tuple[TapDevice, list[str]]:
        device = open_tap("lan0")
        return device, apply(config(3))

    device, facts = space.inside(make)
    assert len(facts) == 1
    assert network in facts[0]
    clashing = 6 if ":" in network else 4
    assert {ipaddress.ip_interface(each).version for each in addresses(space) if not each.startswith("fe80")} == {10 - clashing}
    assert shown(space, "route", "get", host)[0]["dev"] in ("eth9", "lo")
    space.ip("link del eth9")
    assert space.inside(lambda: apply(config(3))) == []
    assert len(addresses(space)) == 3
    device.close()


OFFICE = (
    "link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add 10.20.30.2/24 dev eth0\n"
    "addr add fd55:6677:8899:1::2/64 dev eth0 nodad\nroute add default via 10.20.30.1\nroute add default via fd55:6677:8899:1::1"
)
"""A machine of an office, whose servers are in the next network: no table of this machine names that one."""


def test_an_offices_next_network_that_only_the_default_route_leads_to_is_not_led_into_the_lan(space: Namespace) -> None:
    space.ip(OFFICE)
    theirs = {"ipv4": ("10.20.31.7", 24), "ipv6": (("fd55:6677:8899:2::7", 64), ("fe80::7074:0:0:7", 64))}
    servers = ("10.20.31.5", "fd55:6677:8899:2::5")

    def make() -> tuple[TapDevice, list[str]]:
        device = open_tap("lan0")
        return device, apply(config(7, **theirs))

    device, facts = space.inside(make)
    assert len(facts) == 2
    assert "10.20.31.0/24 lies in 10.0.0.0/8" in facts[0]
    assert "fd55:6677:8899:2::/64 lies in fd55:6677:8899::/48" in facts[1]
    assert all("--any-subnet" in fact for fact in facts)
    assert addresses(space) == {"fe80::7074:0:0:7/64"}
    assert [shown(space, "route", "get", server)[0]["dev"] for server in servers] == ["eth0", "eth0"]
    # A person who knows that nothing is there may have it.
    assert space.inside(lambda: apply(config(7, **theirs, any_subnet=True))) == []
    assert [shown(space, "route", "get", server)[0]["dev"] for server in servers] == ["lan0", "lan0"]
    # One in another block needs nobody's word; nor does a network of this machine's that is behind no router.
    space.ip("link add docker0 type veth peer name docker1\nlink set docker0 up\naddr add 172.17.0.1/16 dev docker0")
    assert space.inside(lambda: apply(config(7, ipv4=("172.22.1.7", 24)))) == []
    assert shown(space, "route", "get", "172.22.1.5")[0]["dev"] == "lan0"
    assert "10.0.0.0/8" in {str(each) for each in space.inside(lambda: routes.surroundings("lan0"))}
    device.close()


def test_a_private_network_that_a_program_is_connected_to_is_not_led_into_the_lan(space: Namespace) -> None:
    """The machine has a public address; the server that somebody works on is reached by the default route."""
    space.ip(
        "link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add 9.8.7.6/24 dev eth0\n"
        "route add default via 9.8.7.1\nroute add default via fe80::1 dev eth0"
    )
    with space.socket() as four, space.socket(socket.AF_INET6) as six, space.socket(socket.AF_INET6) as mapped:
        four.connect(("10.77.1.99", 445))
        six.connect(("fd12:3456:789a::99", 445))
        mapped.connect(("::ffff:192.168.3.4", 445))

        def make() -> tuple[TapDevice, list[str]]:
            device = open_tap("lan0")
            return device, apply(config(3, any_subnet=True))

        device, facts = space.inside(make)
        assert len(facts) == 2
        assert addresses(space) == {"fe80::7074:0:0:3/64"}
        assert {str(each) for each in space.inside(routes.spoken_with)} == {
            "10.77.1.0/24", "fd12:3456:789a::/64", "192.168.3.0/24",
        }  # fmt: skip
    assert space.inside(lambda: apply(config(3))) == []
    assert shown(space, "route", "get", "10.77.1.99")[0]["dev"] == "lan0"
    with space.socket() as member:  # whom a game here speaks with in the room takes nothing from the room
        member.connect(("10.77.1.1", 5))
        assert space.inside(lambda: apply(config(3))) == []
        assert len(addresses(space)) == 3
    device.close()


def test_a_network_that_this_machine_joins_later_is_given_back(space: Namespace) -> None:
    device = open_in(space, 3)
    space.ip("link add eth9 type veth peer name eth8")
    space.ip("link set eth9 up")
    space.ip("link set eth8 up")
    space.ip("addr add 10.77.1.200/24 dev eth9")
    assert len(space.inside(lambda: apply(config(3)))) == 1
    assert not any(each.startswith("10.77.1.3/") for each in addresses(space))
    assert shown(space, "route", "get", "10.77.1.1")[0]["dev"] == "eth9"
    device.close()


def test_super_packets_cross_from_tap_to_tap(space: Namespace, other: Namespace) -> None:
    """A megabyte of TCP between two kernels, in fewer frames than a TAP without offloads would need."""
    taps = [open_in(space, 1), open_in(other, 2)]
    listener = other.socket(kind=socket.SOCK_STREAM)
    listener.bind(("10.77.1.2", 7000))
    listener.listen()
    sender = space.socket(kind=socket.SOCK_STREAM)
    sender.setblocking(False)
    sender.connect_ex(("10.77.1.2", 7000))
    view = memoryview(bytearray(MAX_FRAME))
    macs = [bytes.fromhex(f"0270740000{number:02x}") for number in (1, 2)]
    data = os.urandom(1 << 20)
    sent, received, peer, frames = 0, bytearray(), None, 0
    listener.setblocking(False)
    end = time.monotonic() + 20
    while len(received) < len(data):
        assert time.monotonic() < end, f"{len(received)} bytes arrived"
        for source, target, mac in ((taps[0], taps[1], macs[1]), (taps[1], taps[0], macs[0])):
            while length := source.read_into(view):
                view[10:16] = mac
                assert target.writev([view[:length]])
                frames += source is taps[0]
        with contextlib.suppress(BlockingIOError, OSError):
            sent += sender.send(data[sent : sent + 65_536])
        try:
            peer = peer or listener.accept()[0]
            peer.setblocking(False)
            received += peer.recv(1 << 20)
        except BlockingIOError:
            pass
    assert received == data
    assert frames < len(data) / 1400 / 2
    assert not taps[1].errors
    for thing in (*taps, listener, sender, peer):
        assert thing is not None
        thing.close()
