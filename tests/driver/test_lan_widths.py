"""IP packets of a room and what each path carries of them: fragments, too-big messages, the MTU of the interface."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

import trio

from tests.driver.lan_doors import (
    DATAGRAM,
    MAC,
    NAMES,
    PARTIAL,
    SUBNET,
    a_lan,
    packets,
    send_super,
)
from tests.unit.ip.packets import (
    A4,
    B4,
    SYN,
    Flow,
    ip4,
    is_right,
    kernel_takes,
    pseudo,
    slow_sum,
)
from tunnel.errors import ConfigurationError
from tunnel.room.members import LanAddresses
from tunnel.transport.connection.events import PathKind


async def test_an_mtu_that_cannot_be_set_is_said_and_ends_nothing(autojump_clock: object) -> None:
    async with a_lan() as lan:
        said: list[str] = []
        forward = lan.forwards["a"]

        async def refuse(mtu: int) -> None:
            raise ConfigurationError(f"no {mtu}")

        forward._set_mtu, forward._warn = refuse, said.append
        await trio.sleep(60)
        lan.send(Flow().packet(b"goes on"))
        assert packets(await lan.received()) == [Flow().packet(b"goes on")]
        assert len(said) == 1


async def test_a_broadcast_with_an_unfinished_checksum_is_right_at_members_behind_narrow_and_wide_paths(
    autojump_clock: object,
) -> None:
    async with a_lan() as lan:
        sealer = lan.links.near.packets
        assert sealer is not None
        assert sealer.room is not None
        cleo = LanAddresses("cleo", b"c" * 32, A4[:3] + b"\x03", ())
        forward = lan.forwards["a"]
        forward.set_roster(NAMES["a"], SUBNET, [cleo, NAMES["b"]], MAC["a"])
        narrow: list[bytes] = []
        table = forward.table
        table.members[cleo.static].link = cast(Any, SimpleNamespace(packets=Narrow(narrow), door=lan.doors["a"]))
        payload = bytes(range(200)) * 6 + b"!" * 101
        base = struct.pack("!HHHH", 5, 6, 8 + len(payload), 0) + payload
        whole = ip4(17, base, destination=b"\xff" * 4, field=0)
        partial = slow_sum(pseudo(A4, b"\xff" * 4, 17, len(base)))
        lan.send(whole[:26] + struct.pack("!H", partial) + whole[28:], flags=PARTIAL, start=34, offset=6)
        (frame,) = await lan.received()
        (packet,) = kernel_takes(frame).packets
        assert is_right(packet)
        assert sum(len(piece) - 20 for piece in narrow) == len(base)
        assert b"".join(piece[20:] for piece in narrow) == packet[20:]


class Narrow:
    """A sealer of which only what it seals counts."""

    room = 1_000
    repair_flags, repeats = 0, False  # an older peer

    def __init__(self, sealed: list[bytes]) -> None:
        self._sealed = sealed

    @staticmethod
    def goes_on(burst: object, ecn: int) -> bool:
        return True

    def seal_packet(self, burst: object, now: object, packet: memoryview, start: int, end: int, flags: int) -> bool:
        assert end - start <= self.room
        self._sealed.append(bytes(packet[start:end]))
        return True


async def test_what_the_reflector_finds_is_fragmented_for_the_path(autojump_clock: object) -> None:
    async with a_lan() as lan:
        sealer = lan.links.near.packets
        assert sealer is not None
        assert sealer.room is not None
        packet = ip4(17, struct.pack("!HHHH", 5, 5, 8 + sealer.room, 0) + bytes(sealer.room), destination=b"\xff" * 4, field=0)
        lan.forwards["a"].send_to_all(packet)
        pieces = packets(await lan.received())
        assert len(pieces) == 2
        assert b"".join(piece[20:] for piece in pieces) == packet[20:]
        lan.forwards["a"].send_to_all(b"\x45")
        assert lan.drops("a") == {"packet of ours that does not parse": 1}


async def test_where_only_direct_paths_may_carry_the_reflector_sends_nothing_by_a_relay(autojump_clock: object) -> None:
    async with a_lan() as lan:
        paths = lan.links.near._peering.connection._shared.paths  # type: ignore[union-attr]
        paths.policy, paths.current.kind = "direct", PathKind.RELAY
        lan.forwards["a"].send_to_all(ip4(17, DATAGRAM, destination=b"\xff" * 4))
        assert await lan.received() == []


async def test_a_syn_learns_what_the_path_carries(autojump_clock: object) -> None:
    async with a_lan() as lan:
        lan.send(Flow(flags=SYN, options=struct.pack("!BBH", 2, 4, 8960)).packet(b""))
        (frame,) = await lan.received()
        (mss,) = struct.unpack("!H", frame[24 + 42 : 24 + 44])
        room = lan.links.near.packets.room if lan.links.near.packets is not None else None
        assert room is not None
        assert mss == room - 40
        assert frame[24:] == Flow(flags=SYN, options=struct.pack("!BBH", 2, 4, mss)).packet(b"")


async def test_what_is_too_big_is_answered_split_or_fragmented(autojump_clock: object) -> None:
    async with a_lan() as lan:
        sealer = lan.links.near.packets
        assert sealer is not None
        assert sealer.room is not None
        room = sealer.room
        lan.send(Flow().packet(bytes(room)))  # "don't fragment" is set
        assert await lan.received() == []
        answer = lan.taps["a"].written.popleft()[24:]
        assert (answer[9], answer[20], answer[21]) == (1, 3, 4)
        assert struct.unpack("!H", answer[26:28]) == (room,)
        assert answer[12:16] == B4
        assert answer[16:20] == A4
        whole = ip4(17, struct.pack("!HHHH", 5, 5, room + 8, 0) + bytes(room), field=0)
        lan.send(whole)
        pieces = packets(await lan.received())
        assert b"".join(piece[20:] for piece in pieces) == whole[20:]
        assert all(len(piece) <= room for piece in pieces)


async def test_small_paths_carry_ipv6s_minimum_in_pieces(autojump_clock: object) -> None:
    async with a_lan() as lan:
        path = lan.links.near._peering.connection._shared.paths.current  # type: ignore[union-attr]
        path.set_mtu(1200, lan.links.now())
        packet = Flow(version=6, protocol=17).packet(bytes(1280 - 48))
        lan.send(packet)
        assert packets(await lan.received()) == [packet]
        lan.send(Flow(version=6, protocol=17).packet(bytes(1281 - 48)))
        assert await lan.received() == []
        answer = lan.taps["a"].written.popleft()[24:]
        assert (answer[6], answer[40]) == (58, 2)
        assert struct.unpack("!I", answer[44:48]) == (1280,)


async def test_while_the_socket_blocks_nothing_is_read_and_nothing_is_lost(autojump_clock: object) -> None:
    async with a_lan() as lan:
        door = lan.doors["a"]
        door.is_open = trio.Event()
        flows = [Flow(ident=number) for number in range(20)]
        for flow in flows:
            send_super(lan, flow, bytes(60_000), 1000)
        assert await lan.received() == []
        assert lan.taps["a"].reads <= 2  # the second made the first's burst leave
        door.is_open.set()
        frames = await lan.received()
        assert sum(len(frame) - 24 - 40 for frame in frames) == 20 * 60_000
        assert lan.drops("a") == {}


async def test_the_interface_takes_the_mtu_of_the_widest_path(autojump_clock: object) -> None:
    async with a_lan() as lan:
        await trio.sleep(1)
        sealer = lan.links.near.packets
        assert sealer is not None
        assert lan.forwards["a"].mtu == sealer.room == lan.mtus[0]
