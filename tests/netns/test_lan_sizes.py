"""Datagrams of every size, and packets of no kind, through whole processes with real kernels on both sides."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.inner import any_packet, every_short_packet
from tests.netns.lab import Lab, eventually
from tests.netns.programs import ptunnel
from tests.netns.rooms import Member, Room, open_socket
from tests.unit.ip.packets import A4, A6, B4, B6

#: Bytes of payload: where one fragment, two and three are filled, on every path that a room has, and what is far from it.
SIZES = (
    *range(24),
    *range(1_180, 1_240),
    *range(1_380, 1_481),
    *range(2_800, 2_861),
    *range(4_200, 4_261),
    8_972,
    20_000,
    65_000,
)
PORT = 4_446
PACKETS = 4_000
"""Of no kind, from each side."""


@pytest.fixture(scope="module", params=["direct", "relay"])
def room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Lab(tmp_path_factory.mktemp(request.param)) as lab:
        words = ("--path", "relay") if request.param == "relay" else ()
        room = Room(lab, kinds=("prc", "prc"), words=words)
        kind = request.param

        def has_settled() -> bool:
            paths = [way(member) for member in room.members]
            return paths == [kind, kind] and all(member.mtu() > 1_400 for member in room.members)

        eventually(f"the {kind} path carries large datagrams", has_settled, 20)
        yield room


def way(member: Member) -> str:
    """What the member was last told of its path to the other one."""
    assert member.program is not None
    told = [event for event in member.program.collect() if event.get("kind") and not event.get("self")]
    return str(told[-1]["kind"]) if told else ""


def status(member: Member) -> dict[str, Any]:
    assert member.program is not None
    said = ptunnel(member.space, member.program.home, "status", "--json").stdout
    return next(found for line in said.splitlines() if "room" in (found := dict(json.loads(line))))


def assert_unharmed(room: Room) -> None:
    ada, bora = room.members
    for member in room.members:
        assert member.program is not None
        assert member.program.process.poll() is None
        found = status(member)["drops"]
        assert "faults" not in found, found["faults"]
        assert not [reason for reason in found["packets"] if "fault" in reason], found["packets"]
    assert ada.reaches(bora.ipv4, count=3, wait=2)
    assert bora.reaches(ada.ipv6, count=3, wait=2)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_datagram_of_any_size_arrives_as_it_was_sent_and_comes_back(room: Room, family: int) -> None:
    ada, bora = room.members
    near, far = open_socket(ada.space, family), open_socket(bora.space, family, PORT)
    target = (bora.ipv4 if family == socket.AF_INET else bora.ipv6, PORT)
    rng = random.Random(1)
    lost: list[int] = []
    with near, far:
        for sock in (near, far):
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for size in SIZES:
            for _ in range(3):  # what the first leaves behind is a fast path for those after it
                payload = rng.randbytes(size)
                near.sendto(payload, target)
                try:
                    heard, source = far.recvfrom(65_536)
                    assert heard == payload, size
                    far.sendto(heard, source)
                    assert near.recv(65_536) == payload, size
                except TimeoutError:
                    lost.append(size)
    assert len(lost) <= 2, f"lost again and again: {lost}"
    assert_unharmed(room)


def test_packets_of_no_kind_end_nothing(room: Room) -> None:
    """Whoever is root on one machine can put anything into the interface, past the kernel's own checks."""
    ada, bora = room.members
    rng = random.Random(2)
    for sender, receiver in ((ada, bora), (bora, ada)):
        ours = {A4: socket.inet_aton(sender.ipv4), A6: socket.inet_pton(socket.AF_INET6, sender.ipv6)}
        theirs = {B4: socket.inet_aton(receiver.ipv4), B6: socket.inet_pton(socket.AF_INET6, receiver.ipv6)}
        door = sender.space.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        sent = 0
        with door:
            door.bind((sender.interface, 0))
            short = list(every_short_packet())
            for number in range(PACKETS):
                packet = rng.choice(short) if number % 4 == 0 else any_packet(rng, 1_400)
                for before, after in (*ours.items(), *theirs.items()):
                    packet = packet.replace(before, after)
                kind = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
                try:
                    door.send(bytes(12) + kind + packet)
                    sent += 1
                except OSError:  # the interface's queue is full, or there is nothing in it
                    continue
        assert sent > PACKETS / 2
    assert_unharmed(room)
