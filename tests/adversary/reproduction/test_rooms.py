"""What one member of a room cannot do to the others."""

from __future__ import annotations

import random
import struct
from hashlib import sha256

from tests.unit.ip.packets import A4, A6, B4, B6, ip4, ip6
from tunnel.room.core import messages
from tunnel.room.core.creator import CreatorRoom
from tunnel.room.core.messages import Hello, Leave
from tunnel.room.core.room import Room
from tunnel.room.ip.filter import MemberFilter
from tunnel.room.ip.header import parse
from tunnel.units import Instant

T0 = 100.0
PSK = bytes(32)


def static_of(name: str) -> bytes:
    return sha256(name.encode()).digest()


def deliver(now: Instant, *rooms: Room) -> None:
    """Everything that they have to say to each other."""
    by_static = {room.static: room for room in rooms}
    while said := [(room.static, message) for room in rooms if (message := room.poll_message()) is not None]:
        for sender, (receiver, body) in said:
            if receiver in by_static:
                by_static[receiver].handle_message(now, sender, body)


def version(room: Room) -> int:
    assert room.roster is not None
    return room.roster.version


def test_a_member_that_comes_and_goes_for_ten_minutes_costs_the_others_few_rosters() -> None:
    now, mallory = Instant(T0), static_of("mallory")
    creator = CreatorRoom.create(
        now=now, static=static_of("anna"), member_name="anna", room_name="game", entropy=random.Random("anna").randbytes
    )
    ben = Room.join(static=static_of("ben"), member_name="ben", entropy=random.Random("ben").randbytes)
    ben.paired(creator.static, PSK)
    creator.expect(now, ben.static, PSK)
    creator.connected(now, ben.static)
    ben.connected(now, creator.static)
    deliver(now, creator, ben)
    creator.expect(now, mallory, PSK, invited=True)
    before = version(ben)
    for second in range(600):
        now = Instant(T0 + second)
        creator.connected(now, mallory)
        creator.handle_message(now, mallory, messages.encode(Hello(b"", 0, "mallory", False)))
        deliver(now, creator, ben)
        creator.handle_message(now, mallory, messages.encode(Leave()))
        creator.disconnected(now, mallory)
        creator.handle_timeout(now)
        deliver(now, creator, ben)
    rosters = version(ben) - before
    assert 0 < rosters < 60, f"{rosters:,} rosters in ten minutes"


TUNNELS = {"VXLAN": 4789, "GENEVE": 6081, "L2TP": 1701, "GTP": 2152, "Linux VXLAN": 8472}
ROUTERS = {"RIP": 520, "RIPng": 521, "HSRP": 1985, "LDP": 646, "BFD over hops": 4784, "PTP": 319}
GAMES = {"mDNS": 5353, "Minecraft": 4445, "Quake": 27960}


def passes(port: int) -> list[bool]:
    """Whether a member may send there, by IPv4 and by IPv6."""
    judge = MemberFilter({A4, A6}, {B4, B6})
    datagram = struct.pack("!HHHH", 40_000, port, 48, 0) + bytes(40)
    packets = ip4(17, datagram), ip6(17, datagram)
    return [judge.why_dropped(parse(packet, 0, len(packet)), packet, 0) is None for packet in packets]


def test_packets_inside_of_udp_and_protocols_of_routers_over_udp_do_not_pass_and_games_do() -> None:
    assert [name for name, port in GAMES.items() if not all(passes(port))] == []
    assert [name for name, port in {**TUNNELS, **ROUTERS}.items() if any(passes(port))] == []
