"""A host with an ethernet that has the default route: what its programs announce there reaches the LAN, and the other way."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.test_tun import config, open_in, udp4_frame
from tunnel.doors.tun.configure import apply
from tunnel.doors.tun.device import TapDevice, open_tap
from tunnel.doors.tun.groups import HINT_INTERVAL, MAX_GROUPS, GroupMirror
from tunnel.doors.tun.reflector import Reflector, rewrite_source
from tunnel.doors.tun.tap import ETHERNET_SIZE, VIRTIO_SIZE

INNER4 = socket.inet_aton("10.77.1.3")
INNER6 = socket.inet_pton(socket.AF_INET6, "fe80::7074:0:0:3")
MAC9 = bytes.fromhex("027074000009")
ALL = b"\xff" * 6


class Host:
    """A host with `eth0` in a network with a neighbour, and with `lan0`, our TAP, number 3."""

    def __init__(self) -> None:
        self.neighbour = Namespace("neighbour")
        self.space = Namespace("host")
        self.space.ip(
            f"link set lo up\nlink add eth0 type veth peer name eth0 netns {self.neighbour.path}\n"
            "addr add 192.168.7.2/24 broadcast + dev eth0\naddr add fe80::5/64 dev eth0 nodad\nlink set eth0 up"
        )
        self.neighbour.ip("addr add 192.168.7.1/24 broadcast + dev eth0\nlink set eth0 up\nlink set lo up")
        self.space.ip("route add default via 192.168.7.1")
        eventually("carrier", lambda: "LOWER_UP" in self.space.run("ip", "link", "show", "eth0").stdout)
        self.tap: TapDevice = open_in(self.space, 3, routes=())
        self.reflector = self.space.inside(lambda: Reflector("lan0"))

    def close(self) -> None:
        self.reflector.close()
        self.tap.close()
        self.space.close()
        self.neighbour.close()

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        """As a game makes it: bound to a port and to no address."""
        made = self.space.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.settimeout(5)
        return made

    def reflected(self) -> list[bytes]:
        """The payloads of everything that waits."""
        found = []
        while packet := self.space.inside(self.reflector.read):
            found.append(packet[28:] if packet[0] >> 4 == 4 else packet[48:])
        return found

    def group_mirror(self) -> GroupMirror:
        return self.space.inside(lambda: GroupMirror("lan0"))


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.mark.parametrize(
    "target", ["255.255.255.255", "192.168.7.255", "224.0.2.60", "239.255.255.250", "225.1.1.1", "224.0.0.251"]
)
def test_an_announcement_on_the_ethernet_is_heard_in_the_lan_and_answered(host: Host, target: str) -> None:
    with host.socket() as game:
        game.sendto(b"any server?", (target, 4445))
        packet = eventually("the reflected packet", lambda: host.space.inside(host.reflector.read))
        # Another member's kernel takes it as it is.
        member = Namespace("member")
        member.ip("link set lo up")
        tap = open_in(member, 9)
        with member.socket() as server:
            server.settimeout(5)
            server.bind(("", 4445))
            server.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group_on(member, target))
            changed = rewrite_source(packet, INNER4)
            assert tap.writev([bytes(VIRTIO_SIZE), ALL + ALL + b"\x08\x00", changed])
            data, sender = server.recvfrom(100)
            assert (data, sender) == (b"any server?", ("10.77.1.3", game.getsockname()[1]))
        tap.close()
        member.close()
        # Its answer comes to the inner address, and to the game's socket.
        frame = udp4_frame("10.77.1.9", "10.77.1.3", game.getsockname()[1], b"here", bytes.fromhex("027074000003"))
        assert host.tap.writev(frame)
        assert game.recvfrom(100)[0] == b"here"


def group_on(member: Namespace, target: str) -> bytes:
    """ip_mreqn for lan0; for a broadcast address, which needs no membership, some other group."""
    group = target if 224 <= int(target.split(".")[0]) < 240 else "239.0.0.1"
    return socket.inet_aton(group) + struct.pack("=4xi", member.inside(lambda: socket.if_nametoindex("lan0")))


def test_ipv6_groups_are_reflected_too(host: Host) -> None:
    with host.socket(socket.AF_INET6) as game:
        scope = host.space.inside(lambda: socket.if_nametoindex("eth0"))
        game.sendto(b"six", ("ff02::c", 1900, 0, scope))
        packet = eventually("the reflected packet", lambda: host.space.inside(host.reflector.read))
        changed = rewrite_source(packet, INNER4, INNER6)
        assert (changed[8:24], changed[48:]) == (INNER6, b"six")


def test_what_is_for_one_link_or_one_receiver_stays_there(host: Host) -> None:
    with (
        host.socket() as unicast,
        host.socket() as dhcp,
        host.socket() as responder,
        host.socket() as on_lan,
        host.socket() as local,
    ):
        unicast.sendto(b"unicast", ("192.168.7.1", 4445))
        dhcp.bind(("", 68))
        dhcp.sendto(b"dhcp", ("255.255.255.255", 67))
        responder.bind(("", 5353))
        responder.sendto(b"mdns answer", ("224.0.0.251", 5353))
        on_lan.bind(("10.77.1.3", 0))
        on_lan.sendto(b"on the LAN itself", ("255.255.255.255", 4445))
        local.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        local.sendto(b"loopback", ("239.1.1.1", 4445))
        unicast.sendto(b"one-shot query", ("224.0.0.251", 5353))
    eventually("the last one", lambda: b"one-shot query" in host.reflected())
    assert host.reflector.counters == {"dhcp": 1, "responder": 1, "reflected": 1}


def test_what_another_machine_sent_is_not_reflected(host: Host) -> None:
    """A host that bridges or forwards sends others' packets too; they look outgoing."""
    host.space.ip(
        "link add br0 type bridge mcast_snooping 0\nlink set br0 up\nlink add vm0 type veth peer name vm1\n"
        "link set vm0 master br0\nlink set vm0 up\nlink set vm1 up\naddr flush dev eth0\nlink set eth0 master br0\n"
        "addr add 192.168.7.2/24 broadcast + dev br0\nroute add default via 192.168.7.1"
    )
    with host.neighbour.socket() as stranger, host.socket() as game:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)

        def bridged() -> bool:
            stranger.sendto(b"not ours", ("192.168.7.255", 4445))
            assert host.reflected() == []
            return host.reflector.counters["foreign"] > 0

        eventually("the bridge forwards", bridged)
        game.sendto(b"ours", ("255.255.255.255", 4445))
        found = eventually("our own", host.reflected)
        assert found == [b"ours"], "seen at the bridge and at both its ports, and taken once"


def test_a_fragment_is_left_out(host: Host) -> None:
    with host.socket() as game:
        game.sendto(bytes(4000), ("255.255.255.255", 4445))
        game.sendto(b"whole", ("255.255.255.255", 4445))
        eventually("the whole one", lambda: b"whole" in host.reflected())
    assert host.reflector.counters["fragment"] >= 2


def test_what_the_lan_has_already_is_not_reflected_again(host: Host) -> None:
    with host.socket() as game:
        copy = b"".join(udp4_frame("10.77.1.3", "10.77.1.255", 4445, b"on every interface", ALL))[VIRTIO_SIZE + ETHERNET_SIZE :]
        host.reflector.note(copy)
        game.sendto(b"on every interface", ("192.168.7.255", 4445))
        game.sendto(b"another", ("192.168.7.255", 4445))
        eventually("the other one", lambda: b"another" in host.reflected())
        assert host.reflector.counters == {"repeat": 1, "reflected": 1}


def open_second_room(host: Host) -> TapDevice:
    def make() -> TapDevice:
        device = open_tap("lan1")
        apply(config(4, name="lan1", ipv4=("10.88.1.4", 24), ipv6=()))
        return device

    return host.space.inside(make)


def test_rooms_of_one_machine_do_not_hear_one_another(host: Host) -> None:
    second = open_second_room(host)
    with host.socket() as game, host.socket() as other:
        game.bind(("10.88.1.4", 0))
        game.sendto(b"in the other room", ("255.255.255.255", 4445))
        other.sendto(b"for all", ("255.255.255.255", 4445))
        eventually("the one for all", lambda: b"for all" in host.reflected())
    assert host.reflector.counters == {"lan": 1, "reflected": 1}
    second.close()


def test_a_host_that_forwards_for_others_does_not_for_the_lan(host: Host) -> None:
    """The neighbour stands for a virtual machine, or for a network that the host routes for."""
    host.space.sysctl("net.ipv4.ip_forward", 1)
    host.neighbour.ip("route add 10.77.1.0/24 via 192.168.7.2")
    with host.neighbour.socket() as server:
        server.settimeout(10)
        server.bind(("", 7000))
        frame = udp4_frame("10.77.1.9", "192.168.7.1", 7000, b"let me in", bytes.fromhex("027074000003"))
        host.tap.writev(frame)
        assert server.recv(100) == b"let me in", "with the switch as ip_forward leaves it the packet would pass"
        host.space.inside(lambda: apply(config(3, routes=())))
        server.settimeout(0.3)
        host.tap.writev(frame)
        with pytest.raises(TimeoutError):
            server.recv(100)


# ------------------------------------------------------------ groups


def join(sock: socket.socket, group: str) -> None:
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton("0.0.0.0"))


@pytest.mark.parametrize("mac", ["ffffffffffff", "01005e010203", "027074000003"])
def test_a_program_that_joined_on_the_default_interface_hears_the_lan(host: Host, mac: str) -> None:
    mirror = host.group_mirror()
    with host.socket() as receiver:
        receiver.bind(("", 4446))
        join(receiver, "239.1.2.3")
        frame = udp4_frame("10.77.1.9", "239.1.2.3", 4446, b"hello", bytes.fromhex(mac))
        receiver.settimeout(0.3)
        host.tap.writev(frame)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
        host.space.inside(mirror.poll)
        assert {str(group) for group in mirror.groups} == {"239.1.2.3"}
        receiver.settimeout(5)
        host.tap.writev(frame)
        assert receiver.recvfrom(100) == (b"hello", ("10.77.1.9", 5555))
    host.space.inside(mirror.poll)
    assert mirror.groups == set()
    assert "239.1.2.3" not in host.space.run("ip", "maddr", "show", "dev", "lan0").stdout
    mirror.close()


@pytest.mark.parametrize("mac", ["333300040005", "027074000003"])
def test_an_ipv6_group_is_mirrored_too(host: Host, mac: str) -> None:
    mirror = host.group_mirror()
    with host.socket(socket.AF_INET6) as receiver:
        receiver.bind(("::", 4446))
        scope = host.space.inside(lambda: socket.if_nametoindex("eth0"))
        receiver.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::4:5") + struct.pack("=I", scope)
        )
        host.space.inside(mirror.poll)
        assert {str(group) for group in mirror.groups} == {"ff02::4:5"}
        body = struct.pack("!HHHH", 5555, 4446, 8 + 5, 0) + b"hello"
        packet = struct.pack("!IHBB", 6 << 28, len(body), 17, 1) + socket.inet_pton(socket.AF_INET6, "fe80::7074:0:0:9")
        packet += socket.inet_pton(socket.AF_INET6, "ff02::4:5") + body
        host.tap.writev([bytes(VIRTIO_SIZE), bytes.fromhex(mac) + MAC9 + b"\x86\xdd", rewrite_source(packet, b"", packet[8:24])])
        assert receiver.recv(100) == b"hello"
    mirror.close()


def test_who_asks_a_group_that_it_has_just_joined_hears_the_answer(host: Host) -> None:
    """Freeciv's client does, and the answer may come before the next look."""
    mirror = host.group_mirror()
    with host.socket() as receiver:
        host.space.inside(mirror.poll)
        join(receiver, "239.9.9.9")
        assert mirror.groups == set()
        mirror._looked_at -= HINT_INTERVAL
        host.space.inside(lambda: mirror.hint(socket.inet_aton("192.168.7.1")))  # no group
        assert mirror.groups == set()
        host.space.inside(lambda: mirror.hint(socket.inet_aton("239.9.9.9")))
        assert {str(group) for group in mirror.groups} == {"239.9.9.9"}
    looked_at = mirror._looked_at = mirror._looked_at + 60.0  # so that however slow this test is, the last look was just now
    for number in range(9):  # a flood to groups that nobody joined is not a flood of looks
        host.space.inside(lambda number=number: mirror.hint(bytes((239, 9, 9, number))))
    assert mirror._looked_at == looked_at
    mirror.close()


def test_two_rooms_do_not_keep_one_anothers_memberships_alive(host: Host) -> None:
    second = open_second_room(host)
    other_mirror = host.space.inside(lambda: GroupMirror("lan1"))
    mirror = host.group_mirror()
    with host.socket() as receiver:
        join(receiver, "239.1.2.3")
        for one in (mirror, other_mirror):
            host.space.inside(one.poll)
            assert len(one.groups) == 1
    for one in (mirror, other_mirror):
        host.space.inside(one.poll)
        assert one.groups == set()
        one.close()
    second.close()


def test_more_groups_than_one_socket_joins_and_no_more_than_the_cap(host: Host) -> None:
    mirror = host.group_mirror()
    with contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(host.socket()) for _ in range(5)]
        for number in range(80):
            join(receivers[number // 16], f"239.9.9.{number}")
        host.space.inside(mirror.poll)
        assert len(mirror.groups) == MAX_GROUPS
        assert mirror.errors == {}
    mirror.close()
