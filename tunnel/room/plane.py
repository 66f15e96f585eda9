"""A LAN interface between the kernel and the members: the one object that `ptunnel lan` and `ptunnel exec` put between the two.

Outbound is lan_send.py, inbound lan_receive.py; here is who is who, and what the interface's MTU is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.room.members import LanAddresses, LanTable
from tunnel.room.receive import LanReceiver
from tunnel.room.send import SMALLEST_MTU, LanSender
from tunnel.shell.link import Link
from tunnel.units import Instant

if TYPE_CHECKING:
    from tunnel.doors.tun.tap import Tap

__all__ = ["LanAddresses", "LanForward"]

LARGEST_MTU: Final = 9_000  # bytes; what jumbo paths carry and more than any other
MTU_INTERVAL: Final = 0.25  # seconds between two looks at what the paths carry
_PLAIN_VIRTIO: Final = bytes(10)


class LanForward:
    """Packets between an interface and the links of a room's members."""

    def __init__(
        self,
        device: Tap,
        *,
        me: LanAddresses,
        mac: bytes,
        subnet: bytes,
        clock: Callable[[], Instant],
        set_mtu: Callable[[int], Awaitable[None]],
        note: Callable[[memoryview], bool] | None = None,
        warn: Callable[[str], None] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """`note` is told of every packet to everybody, before it leaves and when it came; True keeps ours from leaving twice.
        `warn` is told, in a sentence each, what the interface would not do."""
        self._device = device
        self._warn = warn
        self._faults = Faults() if faults is None else faults
        self._set_mtu = set_mtu
        self._table = LanTable(me, subnet)
        self._table.note = note
        self._mac = mac
        self._sender = LanSender(self._table, device, clock=clock, answer=self._answer, faults=self._faults)
        self._receiver = LanReceiver(self._table, device, mac, self._sender.send_to, self._faults)
        self.mtu = SMALLEST_MTU  # of the interface, as last set

    @property
    def drops(self) -> Mapping[str, int]:
        """How often a packet was dropped between interface and links, by reason."""
        return self._table.drops

    def set_roster(self, me: LanAddresses, subnet: bytes, others: Iterable[LanAddresses], mac: bytes) -> None:
        """The newest roster; who is no longer in it neither sends nor gets anything from now on.  Raises ConfigurationError."""
        self._mac = mac
        self._receiver.set_mac(mac)
        for gone in self._table.set(me, subnet, others):
            if gone.link is not None:
                gone.link.set_packet_sink(None)
        for member in self._table.members.values():
            if member.link is not None:
                member.link.set_packet_sink(functools.partial(self._receiver.take, member))

    def set_has_ipv4(self, has_ipv4: bool) -> None:
        """Whether the interface has our IPv4 address.  Where it has not, members hear so as soon as they try it."""
        self._table.set_has_ipv4(has_ipv4)

    def add_link(self, static: bytes, link: Link) -> None:
        """The member is connected by `link` from now on; ignored for a key that is not in the roster."""
        member = self._table.members.get(static)
        if member is not None:
            member.link = link
            link.set_packet_sink(functools.partial(self._receiver.take, member))
            if link.door is not None:
                link.door.after_receive = self._after_receive

    def remove_link(self, static: bytes, link: Link) -> None:
        """That link has ended."""
        member = self._table.members.get(static)
        if member is not None and member.link is link:
            member.link = None
        link.set_packet_sink(None)

    def send_to_all(self, packet: bytes) -> None:
        """An IP packet of ours that did not leave by the interface (the reflector found it): its source is our inner address."""
        self._sender.send_to_all(packet)

    async def run(self) -> None:
        """Until cancelled.  Raises ConfigurationError when the interface is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sender.run)
            nursery.start_soon(self._follow_mtu)

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
                for member in self._table.members.values()
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
