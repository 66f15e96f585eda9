"""Fuzz through the process, not only through decoders: interface, sender, connection, receiver, interface, with nothing left out.

`python -m tests.fuzz.test_lan_through COUNT [SEED]` goes on for as long as wanted.
"""

from __future__ import annotations

import random
import struct
import sys

import pytest
import trio

from tests.driver.lan_doors import MAC, NAMES, Lan, a_lan
from tests.fuzz.inner import any_packet, every_short_packet
from tests.twins.tap import ALL_OFFLOADS
from tests.unit.ip.packets import Flow
from tunnel.shell.packets import PACKET_PARTIAL, PACKET_ROOM, PacketBurst, PacketRun

GOOD = Flow(protocol=17).packet(b"still there")
ROUNDS = 3_000


def watch(lan: Lan) -> list[str]:
    """The reports of what is raised on either side from now on, and held by a wall."""
    reports: list[str] = []
    for forward in lan.forwards.values():
        forward._faults.keep = lambda text: reports.append(text)
    return reports


def take(lan: Lan, run: PacketRun) -> None:
    forward = lan.forwards["b"]
    forward._receiver.take(forward.table.members[NAMES["a"].static], lan.links.now(), [run])


def run_of(packet: bytes, is_partial: bool, ecn: int) -> PacketRun:
    return PacketRun(b"", [memoryview(packet)], len(packet), 0, 0, True, is_partial, ecn)


async def test_every_short_packet_and_fragment_is_written_or_counted(autojump_clock: object) -> None:
    async with a_lan() as lan:
        count, reports = 0, watch(lan)
        for packet in every_short_packet():
            for is_partial in (False, True):
                take(lan, run_of(packet, is_partial, 0))
                take(lan, run_of(packet, is_partial, 0))  # what the first left behind is a fast path for the second
                count += 2
        dropped = sum(lan.drops("b").values())
        assert "\n".join(reports) == ""
        assert len(lan.taps["b"].written) + dropped == count
        assert len(lan.taps["b"].written) > 1_000


def send_frame(lan: Lan, rng: random.Random, packet: bytes) -> None:
    """As our own kernel, or whoever holds a raw socket, gives it."""
    flags = kind = gso = start = offset = 0
    if rng.random() < 0.5:
        flags = rng.choice((1, 1, 2, 3))
        kind = rng.choice((0, 1, 3, 4, 5, 0x81, 0x84, 77))
        gso = rng.choice((0, 1, 8, 1_000, 1_400, 65_535))
        start = rng.choice((0, 14, 34, 54, 60_000))
        offset = rng.choice((0, 2, 6, 16, 60_000))
    ethertype = rng.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06")) if rng.random() < 0.1 else None
    if ethertype is None:
        ethertype = b"\x08\x00" if packet[:1] and packet[0] >> 4 == 4 else b"\x86\xdd"
    lan.taps["a"].send_from_host(struct.pack("=BBHHHH", flags, kind, 0, gso, start, offset) + MAC["a"] * 2 + ethertype + packet)


def seal_anything(lan: Lan, rng: random.Random, burst: PacketBurst) -> None:
    """What a member that is none of ours puts into a PACKET frame: no sender has judged it."""
    sealer = lan.links.near.packets
    assert sealer is not None
    assert sealer.room is not None
    now = lan.links.now()
    if rng.random() < 0.5:
        packet = any_packet(rng, sealer.room)
        frame = memoryview(bytearray(PACKET_ROOM) + packet)
        sealer.begin(burst, rng.choice((0, 0, 1, 3)))
        for _ in range(rng.choice((1, 2))):
            sealer.seal_packet(burst, now, frame, PACKET_ROOM, len(frame), rng.choice((0, PACKET_PARTIAL, PACKET_PARTIAL)))
    else:
        step = rng.choice((1, 7, 100, 1_000))
        head = any_packet(rng, 100)[: rng.choice((20, 28, 40, 48, 60, 255))]
        frame = memoryview(bytearray(PACKET_ROOM) + head + rng.randbytes(rng.randint(1, step * 20)))
        count = -(-(len(frame) - PACKET_ROOM - len(head)) // step)
        index = rng.choice((0, 0, rng.randrange(count)))
        sealer.begin(burst, 0)
        sealer.seal_segments(burst, now, frame, PACKET_ROOM, head, len(frame), step, index, rng.choice((0, PACKET_PARTIAL)))
    transmit = burst.transmit()
    if transmit is not None:
        lan.links.deliver("a", transmit)


async def throw_everything(seed: int, rounds: int, offloads: int = ALL_OFFLOADS) -> None:
    """A member, our own kernel and the reflector do their worst; afterwards a good packet still comes through."""
    rng = random.Random(seed)
    burst = PacketBurst(bytearray(65_536))
    async with a_lan(offloads=offloads) as lan:
        near, reports = lan.links.near.connection, watch(lan)
        for number in range(rounds):
            match number % 3:
                case 0:
                    send_frame(lan, rng, any_packet(rng, rng.choice((1_500, 1_500, 9_000, 60_000))))
                case 1:
                    seal_anything(lan, rng, burst)
                case 2:
                    lan.forwards["a"].send_to_all(any_packet(rng, 9_000))
            if not number % 50:
                await lan.received()
                lan.taps["a"].written.clear()
                await trio.sleep(1)  # of virtual time: allowances are filled up again
        await lan.received()
        assert "\n".join(reports) == "", f"seed {seed}"
        assert lan.links.near.connection is near
        assert lan.links.near.close_reason is lan.links.far.close_reason is None
        lan.send(GOOD)
        assert [frame[24:] for frame in await lan.received()] == [GOOD], f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_thrown_at_a_lan_no_fault_is_met_and_it_goes_on(autojump_clock: object, seed: int) -> None:
    await throw_everything(seed, ROUNDS, ALL_OFFLOADS if seed % 2 else 0)


def main() -> None:
    from trio.testing import MockClock

    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for number in range(-(-count // ROUNDS)):
        trio.run(throw_everything, seed + number, ROUNDS, clock=MockClock(autojump_threshold=0))
    print(f"{count} packets, no fault")


if __name__ == "__main__":
    main()
