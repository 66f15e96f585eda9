"""A LAN between two interfaces in memory: what a host sends comes out at the other, whole, once, and only if it may."""

from __future__ import annotations

import struct

import pytest
import trio

from tests.driver.lan_doors import (
    DATAGRAM,
    MAC,
    NAMES,
    OUR_PORT,
    PARTIAL,
    SUBNET,
    TCPV4,
    TCPV6,
    UDP_L4,
    Lan,
    a_lan,
    packets,
    send_super,
)
from tests.twins.tap import MemoryTap
from tests.unit.ip.packets import (
    A4,
    ACK,
    B4,
    CWR,
    FIN,
    PSH,
    SYN,
    Flow,
    ip4,
    ip6,
)
from tunnel.doors.tun.tap import Pieces
from tunnel.errors import ConfigurationError
from tunnel.room.core.discovery import EVERYBODY_BURST
from tunnel.room.ip import header
from tunnel.shell.packets import PacketRun
from tunnel.transport.packet.header import MAX_BURST
from tunnel.units import Buffer


@pytest.mark.parametrize(
    "flow", [Flow(), Flow(version=6), Flow(protocol=17), Flow(version=6, protocol=17), Flow(options=b"\1" * 12)]
)
async def test_a_packet_comes_out_as_it_went_in(autojump_clock: object, flow: Flow) -> None:
    async with a_lan() as lan:
        packet = flow.packet(b"hello")
        lan.send(packet)
        (frame,) = await lan.received()
        assert frame[24:] == packet
        assert frame[:10] == bytes(10)
        assert frame[10:16] == MAC["b"]


@pytest.mark.parametrize("flow", [Flow(flags=ACK | PSH | FIN), Flow(version=6, options=b"\1" * 12), Flow(protocol=17)])
@pytest.mark.parametrize("size", [1_000, 4_001, 60_000])
async def test_a_super_packet_comes_out_as_super_packets(autojump_clock: object, flow: Flow, size: int) -> None:
    async with a_lan() as lan:
        payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
        send_super(lan, flow, payload, 1000)
        frames = await lan.received()
        assert len(frames) == -(-(-(-size // 1000) * (1035 + flow.head_size)) // MAX_BURST)
        assert b"".join(frame[24 + flow.head_size :] for frame in frames) == payload
        if size > 1000:
            (flags, kind, hdr_len, gso, start, offset) = struct.unpack("=BBHHHH", frames[0][:10])
            assert (flags, gso) == (PARTIAL, 1000)
            assert kind == (UDP_L4 if flow.protocol == 17 else TCPV4 if flow.version == 4 else TCPV6)
            assert start + offset < hdr_len == 14 + flow.head_size


async def test_without_the_offload_segments_come_out_one_by_one_with_checksums(autojump_clock: object) -> None:
    async with a_lan(offloads=0) as lan:
        flow, payload = Flow(protocol=17), bytes(3_500)
        send_super(lan, flow, payload, 1000)
        assert packets(await lan.received()) == flow.segments(payload, 1000)


async def test_a_partial_checksum_travels_and_is_derived_anew(autojump_clock: object) -> None:
    async with a_lan() as lan:
        packet = Flow().packet(b"hello", partial=True)
        lan.send(packet, flags=PARTIAL, start=34, offset=16)
        (frame,) = await lan.received()
        assert struct.unpack("=BBHHHH", frame[:10]) == (PARTIAL, 0, 0, 0, 34, 16)
        assert frame[24:] == packet


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip4(17, DATAGRAM, source=bytes((10, 86, 0, 77))), "the source is not the member's"),
        (ip4(17, DATAGRAM, source=bytes((192, 168, 1, 1))), "the source is not the member's"),
        (ip6(17, DATAGRAM, source=b"\xfe\x80" + bytes(14)), "the source is not the member's"),
        (ip6(59, b"", extensions=[(43, bytes((2, 0, 1)) + bytes(20))]), None),
    ],
)
async def test_what_a_member_may_not_send_is_dropped_by_the_receiver(
    autojump_clock: object, packet: bytes, reason: str | None
) -> None:
    async with a_lan() as lan:
        lan.send(packet)
        assert await lan.received() == []
        assert sum(lan.drops("b").values()) == 1
        if reason is not None:
            assert lan.drops("b") == {reason: 1}


async def test_nobody_is_reached_behind_a_member(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.send(ip4(17, DATAGRAM, destination=bytes((192, 168, 1, 1))))
        assert await lan.received() == []
        assert lan.drops("a") == {"packet to no member": 1}
        # A member that sends it all the same: its own table says that the address is ours.
        lan.forwards["a"].set_roster(NAMES["a"], SUBNET, [NAMES["b"]._replace(ipv4=bytes((192, 168, 1, 1)))], MAC["a"])
        lan.send(ip4(17, DATAGRAM, destination=bytes((192, 168, 1, 1))))
        assert await lan.received() == []
        assert lan.drops("b") == {"the destination is not ours": 1}


@pytest.mark.parametrize("destination", [b"\xff" * 4, A4[:3] + b"\xff", bytes((224, 0, 2, 60)), bytes((239, 255, 255, 250))])
async def test_broadcasts_and_multicasts_reach_everybody_as_such(autojump_clock: object, destination: bytes) -> None:
    async with a_lan() as lan:
        packet = ip4(17, struct.pack("!HHHH", 5, 5, 8, 0), destination=destination)
        lan.send(packet)
        (frame,) = await lan.received()
        assert frame[24:] == packet
        group = b"\x01\x00\x5e" + bytes((destination[1] & 127,)) + destination[2:]
        assert frame[10:16] == (group if destination[0] < 240 and destination[0] >= 224 else b"\xff" * 6)


async def test_datagrams_of_one_flow_and_of_others_in_between_come_out_as_they_went_in(autojump_clock: object) -> None:
    async with a_lan() as lan:
        one, two = Flow(protocol=17), Flow(protocol=17, ports=(40_001, 5_001))
        sent = [Flow(protocol=17, ident=number).packet(bytes((number,)) * 72) for number in range(100)]
        sent += [two.packet(b"a" * 72), one.packet(b"b" * 72), one.packet(b"c" * 71), one.packet(b"d" * 72)]
        broadcast = ip4(17, DATAGRAM, destination=b"\xff" * 4)
        sent += [broadcast, broadcast, one.packet(b"e" * 72)]
        for packet in sent:
            lan.send(packet)
        lan.send(Flow(protocol=17, ports=(OUR_PORT, 9)).packet(b"f" * 72))
        assert packets(await lan.received()) == sent
        assert lan.drops("a") == {"our own datagram, routed into the interface": 1}
        assert lan.drops("b") == {}


@pytest.mark.parametrize("size", range(1, 9))
async def test_last_fragments_that_end_before_ports_would_come_through(autojump_clock: object, size: int) -> None:
    async with a_lan() as lan:
        sent = [ip4(17, bytes(1400), field=0x2000), *[ip4(17, bytes((n,)) * size, field=175, ident=7 + n) for n in range(3)]]
        for packet in sent:
            lan.send(packet)
        assert packets(await lan.received()) == sent
        assert lan.drops("a") == lan.drops("b") == {}


async def test_a_later_fragment_is_no_datagram_of_ours_whatever_its_bytes(autojump_clock: object) -> None:
    async with a_lan() as lan:
        later = ip4(17, struct.pack("!H", OUR_PORT) * 8, field=175)
        lan.send(later)
        assert packets(await lan.received()) == [later]


async def test_a_super_packet_to_the_subnets_broadcast_address_is_refused(autojump_clock: object) -> None:
    async with a_lan() as lan:
        head = ip4(17, struct.pack("!HHHH", 5, 6, 28, 0), destination=A4[:3] + b"\xff")
        run = PacketRun(head, [memoryview(bytes(10))] * 2, 20, 10, 0, True, True, 0)
        forward = lan.forwards["b"]
        forward._receiver.take(forward.table.members[NAMES["a"].static], lan.links.now(), [run])
        assert await lan.received() == []
        assert lan.drops("b") == {"super-packet to everybody": 2}


async def test_what_one_packet_makes_us_raise_ends_that_packet_alone(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = header.parse

    def with_a_fault(buffer: Buffer, at: int, end: int) -> header.Inner:
        if bytes(buffer[at:end]).endswith(b"fault"):
            raise IndexError("index out of range")
        return parse(buffer, at, end)

    async with a_lan() as lan:
        told: dict[str, list[str]] = {side: [] for side in "ab"}
        reports: list[str] = []
        for side, forward in lan.forwards.items():
            forward._faults.tell = told[side].append
            forward._faults.keep = lambda text: reports.append(text)
        monkeypatch.setattr(header, "parse", with_a_fault)
        for _ in range(3):
            lan.send(Flow().packet(b"a fault"))
            lan.send(Flow(protocol=17).packet(b"well"))
        assert packets(await lan.received()) == [Flow(protocol=17).packet(b"well")] * 3
        assert lan.drops("b") == {"inner packet that met a fault": 3}
        assert told["a"] == []
        assert len(told["b"]) == 1
        assert "ann" in told["b"][0]
        assert len(reports) == 1
        assert "with_a_fault" in reports[0]
        assert f"inner packet of 47 bytes, beginning with {Flow().packet(b'a fault')[:40].hex()}" in reports[0]


async def test_what_a_packet_of_our_own_makes_us_raise_ends_that_packet_alone(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_lan() as lan:
        told: list[str] = []
        forward = lan.forwards["a"]
        forward._faults.tell = told.append
        before = header.destination_of

        def with_a_fault(buffer: Buffer, at: int, end: int) -> bytes | None:
            if bytes(buffer[at:end]).endswith(b"fault"):
                raise ZeroDivisionError
            return before(buffer, at, end)

        monkeypatch.setattr(header, "destination_of", with_a_fault)
        ack = Flow(flags=ACK).packet(b"")
        for packet in (ack, Flow().packet(b"a fault"), ack, Flow().packet(b"well"), ack):
            lan.send(packet)
        assert packets(await lan.received()) == [ack, ack, Flow().packet(b"well"), ack]
        assert lan.drops("a") == {"packet of ours that met a fault": 1}
        monkeypatch.setattr(forward._sender, "_whole", with_a_fault)
        forward.send_to_all(ip4(17, DATAGRAM, destination=b"\xff" * 4))
        assert lan.drops("a") == {"packet of ours that met a fault": 2}
        assert len(told) == 1


async def test_an_interface_that_was_removed_ends_the_room_with_a_sentence() -> None:
    class Gone(MemoryTap):
        is_gone = False

        def read_into(self, view: memoryview) -> int:
            if self.is_gone:
                raise trio.BrokenResourceError
            return super().read_into(view)

        def writev(self, pieces: Pieces) -> bool:
            if self.is_gone:
                raise trio.BrokenResourceError
            return super().writev(pieces)

    lan = Lan()
    tap = Gone("b")
    lan.taps["b"] = tap
    lan.forwards["b"] = forward = lan._forward("b")
    tap.is_gone = True
    member = forward.table.members[NAMES["a"].static]
    forward._receiver.take(member, lan.links.now(), [PacketRun(b"", [memoryview(Flow().packet(b"x"))], 41, 0, 0, True, False, 0)])
    assert lan.drops("b") == {"the interface is gone": 1}
    forward._after_receive()
    tap.send_from_host(bytes(64))
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="b was removed"), flatten_subgroups=True):
        await forward.run()


async def test_multicast_of_ipv6_has_its_group(autojump_clock: object) -> None:
    async with a_lan() as lan:
        group = b"\xff\x02" + bytes(13) + b"\xfb"
        lan.send(ip6(17, struct.pack("!HHHH", 5353, 5353, 8, 1), destination=group))
        (frame,) = await lan.received()
        assert frame[10:16] == b"\x33\x33\x00\x00\x00\xfb"


async def test_a_flood_of_broadcasts_is_cut_off(autojump_clock: object) -> None:
    async with a_lan() as lan:
        packet = ip4(17, struct.pack("!HHHH", 5, 5, 8, 0), destination=b"\xff" * 4)
        sent = 0
        for _ in range(10):
            for _ in range(100):
                lan.send(packet)
                sent += 1
            await trio.testing.wait_all_tasks_blocked()
        got = len(await lan.received())
        assert EVERYBODY_BURST * 0.9 <= got <= EVERYBODY_BURST * 1.1
        assert lan.drops("a")["broadcasts over the rate"] == sent - got


async def test_what_the_reflector_finds_goes_to_everybody(autojump_clock: object) -> None:
    async with a_lan() as lan:
        packet = ip4(17, struct.pack("!HHHH", 5, 5, 8, 0), destination=b"\xff" * 4)
        lan.forwards["a"].send_to_all(packet)
        assert packets(await lan.received()) == [packet]


async def test_a_broadcast_that_left_some_other_way_does_not_leave_twice(autojump_clock: object) -> None:
    async with a_lan() as lan:
        noted: list[bytes] = []

        def note(packet: memoryview) -> bool:
            noted.append(bytes(packet))
            return len(noted) > 1

        for forward in lan.forwards.values():
            forward.table.note = note if forward is lan.forwards["a"] else None
        packet = ip4(17, DATAGRAM, destination=b"\xff" * 4)
        lan.send(packet)
        lan.send(packet)
        assert packets(await lan.received()) == [packet]
        assert noted == [packet, packet]
        assert lan.drops("a") == {"broadcast that the reflector has sent": 1}


async def test_a_removed_member_is_cut_off_both_ways(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.forwards["b"].set_roster(NAMES["b"], SUBNET, [], MAC["b"])
        lan.send(Flow().packet(b"hello"))
        assert await lan.received() == []
        lan.forwards["a"].set_roster(NAMES["a"], SUBNET, [], MAC["a"])
        lan.send(Flow().packet(b"hello"))
        assert await lan.received() == []
        assert lan.drops("a") == {"packet to no member": 1}


async def test_with_another_host_number_frames_go_to_the_interfaces_new_address(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.forwards["b"].set_roster(NAMES["b"], SUBNET, [NAMES["a"]], b"\x02pt\0\0\x09")
        lan.send(Flow().packet(b"hello"))
        (frame,) = await lan.received()
        assert frame[10:16] == b"\x02pt\0\0\x09"


async def test_two_members_with_one_address_are_refused(autojump_clock: object) -> None:
    async with a_lan() as lan:
        with pytest.raises(ConfigurationError):
            lan.forwards["a"].set_roster(NAMES["a"], SUBNET, [NAMES["b"], NAMES["b"]._replace(static=b"c" * 32)], MAC["a"])


async def test_ecn_is_carried_and_a_mark_on_what_takes_none_is_dropped(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.links.mark = True
        lan.send(Flow(tos=2).packet(b"x"))
        lan.send(Flow(version=6, tos=1).packet(b"x"))
        send_super(lan, Flow(tos=2), bytes(3000), 1000)
        assert [frame[25] & 3 if frame[24] >> 4 == 4 else frame[25] >> 4 & 3 for frame in await lan.received()] == [3, 3, 3]
        lan.send(Flow(tos=0).packet(b"x"))
        assert await lan.received() == []
        assert lan.drops("b") == {"congestion mark on a packet that takes none": 1}


async def test_a_super_packet_with_cwr_is_joined_with_its_mark(autojump_clock: object) -> None:
    async with a_lan() as lan:
        send_super(lan, Flow(flags=ACK | CWR), bytes(3000), 1000)
        (frame,) = await lan.received()
        assert frame[1] == TCPV4 | 0x80
        assert frame[24 + 33] & CWR


@pytest.mark.parametrize("version", [4, 6])
async def test_a_datagram_of_our_own_socket_never_enters_the_tunnel(autojump_clock: object, version: int) -> None:
    async with a_lan() as lan:
        lan.send(Flow(version=version, protocol=17, ports=(OUR_PORT, 9)).packet(b"x"))
        send_super(lan, Flow(version=version, protocol=17, ports=(OUR_PORT, 9)), bytes(3000), 1000)
        assert await lan.received() == []
        assert lan.drops("a") == {"our own datagram, routed into the interface": 2}


async def test_what_only_a_raw_socket_makes_ends_no_task(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.send(Flow().packet(b"x"), flags=PARTIAL, start=60_000, offset=6)
        lan.send(Flow().packet(bytes(3000)), kind=3, gso=1000, flags=PARTIAL)
        lan.send(Flow(flags=SYN).packet(b"")[:30])
        lan.send(ip4(6, bytes(1400)), flags=PARTIAL, start=34, offset=16)
        lan.send(Flow().packet(b"still there"))
        assert packets(await lan.received()) == [Flow().packet(b"still there")]
        assert lan.drops("a") == {"packet of ours that does not parse": 2}
        assert lan.drops("b") == {"inner packet that does not parse": 2}


async def test_frames_that_are_no_ip_are_dropped_and_counted(autojump_clock: object) -> None:
    async with a_lan() as lan:
        assert lan.taps["a"].send_from_host(bytes(10) + MAC["a"] + MAC["a"] + b"\x08\x06" + bytes(28))
        assert lan.taps["a"].send_from_host(bytes(10) + MAC["a"] + MAC["a"] + b"\x08\x00")
        assert lan.taps["a"].send_from_host(bytes(10) + MAC["a"] + MAC["a"] + b"\x08\x00" + b"\x45" + bytes(10))
        assert await lan.received() == []
        assert sum(lan.drops("a").values()) == 3


async def test_an_answer_leaves_as_soon_as_its_cause_was_written(autojump_clock: object) -> None:
    async with a_lan() as lan:
        bob, link = lan.taps["b"], lan.links.far
        packet = Flow(flags=ACK).packet(b"")
        frame = bytes(10) + MAC["b"] + MAC["b"] + b"\x08\x00" + packet[:12] + B4 + A4 + packet[20:]  # the sums stay right
        assert link.door is not None
        after_receive = link.door.after_receive
        assert after_receive is not None
        lan.send(Flow(flags=ACK).packet(b"x" * 40))
        assert len(await lan.received()) == 1
        bursts = lan.doors["b"].bursts
        assert bob.send_from_host(frame)
        after_receive()  # without waiting: what was received has been written by now
        assert lan.doors["b"].bursts == bursts + 1
        assert bob.send_from_host(frame)
        after_receive()  # nothing was written since, so it does not look: that is left to the task that waits
        assert lan.doors["b"].bursts == bursts + 1
        await lan.received()
        assert lan.doors["b"].bursts == bursts + 2


async def test_what_is_stuck_leaves_first_though_others_look_meanwhile(autojump_clock: object) -> None:
    async with a_lan() as lan:
        door, link = lan.doors["a"], lan.links.near
        door.is_open = trio.Event()
        first, second = Flow(flags=ACK).packet(b"first"), Flow(flags=ACK).packet(b"second")
        lan.send(first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        lan.send(second)
        assert lan.forwards["a"].pump() is False
        assert not await lan.received()
        assert link.door is not None
        door.is_open.set()
        assert packets(await lan.received()) == [first, second]
        assert not lan.drops("a")
