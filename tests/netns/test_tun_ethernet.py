"""Minecraft in a room and at home at once: its group is led into the room, and carried over to the ethernet and from it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.test_tun import config, is_udp4, read_frame
from tests.netns.test_tun_reflector import Host
from tunnel.doors.tun.config import MINECRAFT
from tunnel.doors.tun.configure import apply
from tunnel.doors.tun.ethernet import CARRIED_BURST, MAX_ETHERNETS, Ethernets
from tunnel.doors.tun.tap import HEADROOM
from tunnel.doors.tun.wall import Wall, open_wall_socket

GROUP = MINECRAFT.partition("/")[0]
PORT = 4445
IP_MULTICAST_ALL = 49


class Home(Host):
    """A host with an ethernet, a neighbour there, and `lan0` as a room has it."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = self.space.inside(open_wall_socket)
        made = config(3, routes=(MINECRAFT,))
        self.space.inside(lambda: Wall(self.wall, "lan0").build(made))
        assert self.space.inside(lambda: apply(made, True)) == []
        self.neighbour.ip("route add default via 192.168.7.2")
        self.now = 0.0
        self.ethernets = self.space.inside(lambda: Ethernets("lan0", [socket.inet_aton(GROUP)], lambda: self.now))
        self.reflector.copy_ports = self.ethernets.ports

    def close(self) -> None:
        self.ethernets.close()
        self.wall.close()
        super().close()

    def hand_in(self) -> int:
        """All that waits; how many packets that was."""
        count = 0
        while pieces := self.space.inside(self.ethernets.read):
            assert self.tap.writev(pieces)
            count += 1
        return count


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.close()


def game(space: Namespace) -> socket.socket:
    """Hears as Java does: on the one interface that the routing table names for the group, and on no other."""
    made = space.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
    made.bind(("", PORT))
    made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + bytes(4))
    made.settimeout(10)
    return made


def test_a_game_of_a_neighbour_is_heard_with_the_neighbours_address_and_not_told_to_the_room(home: Home) -> None:
    with game(home.space) as player, home.neighbour.socket() as host:
        host.sendto(b"[MOTD]next door[/MOTD]", (GROUP, PORT))
        eventually("it is handed in", home.hand_in)
        assert player.recvfrom(100) == (b"[MOTD]next door[/MOTD]", ("192.168.7.1", host.getsockname()[1]))
        assert home.reflected() == []


def test_a_game_here_is_heard_in_the_room_and_by_neighbours_once_each(home: Home) -> None:
    with home.space.socket() as host, game(home.neighbour) as player, game(home.space):
        host.sendto(b"[MOTD]here[/MOTD]", (GROUP, PORT))
        frame = read_frame(home.tap, lambda frame: is_udp4(frame) and frame.endswith(b"[MOTD]here[/MOTD]"))
        home.ethernets.carry_out(memoryview(frame)[HEADROOM:])
        heard, source = player.recvfrom(100)
        assert (heard, source[0]) == (b"[MOTD]here[/MOTD]", "192.168.7.2")
        home.neighbour.run("ping", "-c", "1", "-W", "5", "192.168.7.2")  # what came by eth0 before it has been seen
        assert home.hand_in() == 0, "our own copy does not come back"
        assert home.reflected() == [], "and does not go into the room as a second one"
        assert home.reflector.counters["copy"] == 1
        assert home.ethernets.counters == {"sent": 1}


def test_only_that_group_is_carried_over(home: Home) -> None:
    with home.neighbour.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for target in ("224.0.2.61", "239.255.255.250", "255.255.255.255", "192.168.7.2"):
            other.sendto(b"not that", (target, PORT))
        other.sendto(b"that", (GROUP, PORT))
        eventually("the last one", home.hand_in)
        assert home.ethernets.counters == {"heard": 1}
    for target in ("224.0.2.61", "255.255.255.255"):
        home.ethernets.carry_out(_packet(target))
    home.ethernets.carry_out(b"\x60" + bytes(60))
    assert home.ethernets.counters == {"heard": 1}


def test_nothing_but_the_games_port_comes_past_the_firewall_of_the_ethernet(home: Home) -> None:
    with home.neighbour.socket() as other:
        other.sendto(b"any program that listens", (GROUP, PORT + 1))
        other.sendto(b"that", (GROUP, PORT))
        eventually("the last one", lambda: home.hand_in() or home.ethernets.counters["heard"])
    home.ethernets.carry_out(_packet(GROUP, PORT + 1))
    assert home.ethernets.counters == {"port": 2, "heard": 1}


@pytest.mark.parametrize("first", [0x60, 0x00, 0xF5])
def test_a_frame_that_only_calls_itself_ipv4_is_left_out_and_ends_nothing(home: Home, first: int) -> None:
    """A packet socket has it before the kernel's IP layer could refuse it."""
    udp = struct.pack("!HHHH", 5555, PORT, 8 + 20, 0) + bytes(20)
    packet = bytearray(40) + udp
    packet[0], packet[6], packet[9] = first, 17, 17
    struct.pack_into("!H", packet, 4, len(udp))
    packet[16:20] = socket.inet_aton(GROUP)
    raw = home.neighbour.socket(socket.AF_PACKET, socket.SOCK_RAW)
    mac = bytes.fromhex("01005e00023c")
    with raw, home.neighbour.socket() as other:
        address = ("eth0", 0x0800)
        home.neighbour.inside(lambda: raw.bind(address))
        raw.send(mac + bytes.fromhex("02005e000001") + b"\x08\x00" + packet)
        other.sendto(b"that", (GROUP, PORT))
        eventually("the one behind it", lambda: home.hand_in() or home.ethernets.counters["heard"])
    assert home.ethernets.counters == {"length": 1, "heard": 1}


def test_a_flood_is_carried_over_at_a_bounded_rate_either_way(home: Home) -> None:
    with home.neighbour.socket() as flood:
        for _ in range(CARRIED_BURST + 10):
            flood.sendto(b"flood", (GROUP, PORT))
    for _ in range(CARRIED_BURST + 10):
        home.ethernets.carry_out(_packet(GROUP))
    assert home.ethernets.counters == {"sent": CARRIED_BURST, "rate": 10}
    eventually("all have been read", lambda: home.hand_in() >= 0 and home.ethernets.counters["rate"] == 20)
    assert home.ethernets.counters == {"sent": CARRIED_BURST, "heard": CARRIED_BURST, "rate": 20}


def test_an_ethernet_that_comes_later_is_served_and_of_many_the_first(home: Home) -> None:
    for number in range(MAX_ETHERNETS + 1):
        home.space.ip(f"link add more{number} type bridge\naddr add 192.168.{20 + number}.1/24 dev more{number}")
    home.space.inside(home.ethernets.look)
    joined = home.space.run("ip", "maddress", "show").stdout
    assert joined.count(f"inet  {GROUP}") == MAX_ETHERNETS
    assert len(home.ethernets.ports) <= MAX_ETHERNETS
    for number in range(MAX_ETHERNETS + 1):
        home.space.ip(f"link del more{number}")
    home.space.inside(home.ethernets.look)
    assert len(home.ethernets.ports) == 1


def _packet(target: str, port: int = PORT) -> bytes:
    udp = struct.pack("!HHHH", 5555, port, 8 + 5, 0) + b"flood"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 1, 17, 0)
    return head + socket.inet_aton("10.77.1.3") + socket.inet_aton(target) + udp
