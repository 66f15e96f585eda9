"""Whatever a member puts into PACKET frames is written as a frame that Linux may take, or dropped with a counter."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twins.tap import MemoryTap
from tests.unit.ip.packets import A4, A6, B4, B6, Flow
from tunnel.doors.tun.device import TapDevice
from tunnel.room.members import LanAddresses, LanTable
from tunnel.room.receive import LanReceiver
from tunnel.shell.packets import PacketRun
from tunnel.units import Instant

ME = LanAddresses("me", b"m" * 32, B4, (B6,))
OTHER = LanAddresses("other", b"o" * 32, A4, (A6,))
NEEDS_CSUM = 1

flows = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([6, 17]),
    options=st.sampled_from([b"", b"\1" * 12]),
    flags=st.integers(0, 255),
    tos=st.integers(0, 255),
)


@st.composite
def runs(draw: Any) -> PacketRun:
    flow = draw(flows)
    packet = bytearray(flow.packet(b"", partial=True))
    for _ in range(draw(st.integers(0, 2))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    head = bytes(packet)[: draw(st.integers(0, len(packet)))] if draw(st.booleans()) else bytes(packet)
    ecn, flag = draw(st.integers(0, 3)), draw(st.booleans())
    if draw(st.booleans()):
        size = draw(st.integers(1, 1400))
        return PacketRun(b"", [memoryview((head + bytes(size))[:size])], size, 0, 0, True, flag, ecn)
    gso_size = draw(st.integers(1, 1400))
    payloads = [memoryview(bytes(gso_size)) for _ in range(draw(st.integers(0, 63)))]
    payloads.append(memoryview(bytes(draw(st.integers(1, gso_size)))))
    size = sum(len(payload) for payload in payloads)
    return PacketRun(head, payloads, size, gso_size, draw(st.integers(0, 255)), draw(st.booleans()), flag, ecn)


@given(found=st.lists(runs(), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_run_is_a_sound_frame_or_a_counted_drop(found: list[PacketRun]) -> None:
    table = LanTable(ME, B4[:3] + b"\0")
    table.set(ME, B4[:3] + b"\0", [OTHER])
    tap = MemoryTap()
    member = table.members[OTHER.static]
    member.link = cast(Any, SimpleNamespace(packets=SimpleNamespace(room=1300)))
    receiver = LanReceiver(table, cast(TapDevice, tap), b"\x02pt\0\0\x02", lambda _member, _packet: None)
    for run in found:
        before = len(tap.written), sum(table.drops.values())
        receiver.take(member, Instant(1000.0), [run])
        wrote, dropped = len(tap.written) - before[0], sum(table.drops.values()) - before[1]
        assert wrote or dropped
        assert wrote <= max(1, len(run.payloads))
    for frame in tap.written:
        flags, kind, hdr_len, gso, start, offset = struct.unpack("=BBHHHH", frame[:10])
        packet = frame[24:]
        assert packet[12:16] == A4 or packet[8:24] == A6
        if flags & NEEDS_CSUM:
            assert 14 + 20 <= start < start + offset + 2 <= len(frame) - 10
        if kind:
            assert flags & NEEDS_CSUM
            assert start < hdr_len < len(frame) - 10
            assert len(packet) - (hdr_len - 14) > gso > 0
        size = int.from_bytes(packet[2:4], "big") if packet[0] >> 4 == 4 else 40 + int.from_bytes(packet[4:6], "big")
        assert size == len(packet)
