"""A LAN interface between the kernel and the members: the one object that `ptunnel lan` and `ptunnel exec` put between the two.

Outbound is lan_send.py, inbound lan_receive.py; here is who is who, and what the interface's MTU is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.room.members import LanAddresses, LanPeer, LanTable
from tunnel.room.receive import LanReceiver
from tunnel.room.send import SMALLEST_MTU, LanSender
from tunnel.shell.link import Link
from tunnel.units import Instant

if TYPE_CHECKING:
    from tunnel.doors.tun.device import TapDevice

LARGEST_MTU: Final = 9_000  # bytes; what jumbo paths carry and more than any other
MTU_INTERVAL: Final = 0.25  # seconds between two looks at what the paths carry
_PLAIN_VIRTIO: Final = bytes(10)


class LanForward:
    """Packets between an interface and the links of a room's members."""

    def __init__(
        self,
        device: TapDevice,
        *,
        clock: Callable[[], Instant],
        set_mtu: Callable[[int], Awaitable[None]],
        note: Callable[[memoryview], bool] | None = None,
        warn: Callable[[str], None] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """`note` is told of every packet to everybody, before it leaves and when it came; True keeps ours from leaving twice.
        `warn` is told, in a sentence each, what the interface would not do.  Nothing is carried before the first set_roster."""
        self._device = device
        self._warn = warn
        self._faults = Faults() if faults is None else faults
        self._set_mtu = set_mtu
        self._clock = clock
        self.table = LanTable(LanAddresses("", b"", b"", ()), bytes(4))
        self.table.note = note
        self._mac = bytes(6)
        self._sender = LanSender(self.table, device, clock=clock, answer=self._answer, faults=self._faults)
        self._receiver = LanReceiver(self.table, device, self._mac, self._sender.send_to, self._faults)
        self.mtu = SMALLEST_MTU  # of the interface, as last set

    def set_roster(self, me: LanAddresses, subnet: bytes, others: Iterable[LanAddresses], mac: bytes) -> None:
        """The newest roster; who is no longer in it neither sends nor gets anything from now on.  Raises ConfigurationError."""
        self._mac = mac
        self._receiver.set_mac(mac)
        for gone in self.table.set(me, subnet, others):
            if gone.link is not None:
                gone.link.set_packet_sink(None)
        for member in self.table.members.values():
            self._join(member)

    def set_link(self, static: bytes, link: Link | None) -> None:
        """Whoever has that key is connected by `link` from now on, or by none.  Packets pass once the roster has the key."""
        former = self.table.links.pop(static, None)
        if former is not None:
            former.set_packet_sink(None)
        if link is not None:
            self.table.links[static] = link
        member = self.table.members.get(static)
        if member is not None:
            member.link = link
            self._join(member)

    def _join(self, member: LanPeer) -> None:
        """Let packets of that member in."""
        if member.link is not None:
            member.link.set_packet_sink(functools.partial(self._receiver.take, member))
            if member.link.door is not None:
                member.link.door.after_receive = self._after_receive

    def send_to_all(self, packet: bytes) -> None:
        """An IP packet of ours that did not leave by the interface (the reflector found it): its source is our inner address."""
        self._sender.send_to_all(packet)

    async def run(self) -> None:
        """Until cancelled.  Raises ConfigurationError when the interface is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sender.run)
            nursery.start_soon(self._follow_mtu)
            nursery.start_soon(self._release)

    async def _release(self) -> None:
        """Let go on what waits for a packet that was lost and does not come."""
        receiver = self._receiver
        while True:
            await receiver.has_held.wait()
            at = receiver.due_at
            if at is None:
                receiver.has_held = trio.Event()
                continue
            await trio.sleep(max(0.001, at - self._clock()))
            receiver.release(self._clock())

    def _after_receive(self) -> None:
        """Read the interface again: what was written has often made an ACK already, which leaves in the same turn."""
        if self._receiver.has_written:
            self._receiver.has_written = False
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # `run` says so
                self.pump()

    def pump(self) -> bool:
        """Send what the interface has now, without waiting; False when there may be more."""
        return self._sender.pump()

    async def _follow_mtu(self) -> None:
        """The interface's MTU is what the widest path carries; on a narrower one lan_send.py answers."""
        while True:
            rooms = [
                room
                for member in self.table.members.values()
                if (sealer := member.sealer) is not None and (room := sealer.room) is not None
            ]
            mtu = min(max(SMALLEST_MTU, *rooms), LARGEST_MTU) if rooms else self.mtu
            if mtu != self.mtu:
                self.mtu = mtu
                try:
                    await self._set_mtu(mtu)
                except ConfigurationError as error:  # packets that are too large are answered, so the room goes on
                    if self._warn is not None:
                        self._warn(str(error))
            await trio.sleep(MTU_INTERVAL)

    def _answer(self, packet: bytes) -> None:
        """An ICMP answer of ours to our own kernel."""
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._device.writev([_PLAIN_VIRTIO, self._mac + self._mac + kind, packet])
