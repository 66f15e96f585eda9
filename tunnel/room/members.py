"""Which inner address is whose: the table that both directions of a LAN look into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from tunnel.errors import ConfigurationError
from tunnel.room.core.discovery import Allowance, weight_in
from tunnel.room.ip.filter import MemberFilter
from tunnel.room.order import MOST_WAIT, WAIT_RTTS, WAIT_SLACK, Held, Order
from tunnel.shell.link import Link
from tunnel.shell.packets import PacketSealer
from tunnel.units import Buffer, Seconds

SHOWN: Final = 40  # bytes of a packet that met a fault: the header of IPv6, and little of what it carries


class LanAddresses(NamedTuple):
    """One member's place: packed addresses (4 and 16 bytes), the first IPv6 one being that of ICMP answers."""

    name: str
    static: bytes
    ipv4: bytes
    ipv6: tuple[bytes, ...]

    @property
    def all(self) -> tuple[bytes, ...]:
        return (self.ipv4, *self.ipv6)


class LanPeer:
    """Another member, reachable or not."""

    def __init__(self, place: LanAddresses, table: LanTable) -> None:
        self.place = place
        self.link: Link | None = None
        self.allowance = Allowance()  # of what it sends to everybody
        self.order = Order(table.held)  # of its flows, where it sends lost packets again
        self.take_ours(table)

    def take_ours(self, table: LanTable) -> None:
        """Our own addresses have changed."""
        ours = table.me.all if table.has_ipv4 else table.me.ipv6
        self.filter = MemberFilter(self.place.all, ours, (table.subnet_broadcast,))

    @property
    def wait(self) -> Seconds:
        """How long a packet of it may wait for what was lost before it."""
        connection = None if self.link is None else self.link.connection
        rtt = 0.0 if connection is None else connection.current_path.smoothed_rtt
        return Seconds(min(WAIT_RTTS * rtt + WAIT_SLACK, MOST_WAIT))

    @property
    def sealer(self) -> PacketSealer | None:
        return None if self.link is None else self.link.packets


class LanTable:
    """The members as of the newest roster."""

    def __init__(self, me: LanAddresses, subnet: bytes) -> None:
        """`subnet` is the address of the room's IPv4 /24."""
        self.me = me
        self.subnet = subnet
        self.links: dict[bytes, Link] = {}  # of everybody who is connected, whether or not the roster has them already
        self.allowance = Allowance()  # of what we send to everybody
        #: Told of every packet to everybody, ours and theirs; True when that packet has left some other way already.
        self.note: Callable[[memoryview], bool] | None = None
        self.held = Held()  # of what waits for lost packets, by the orders of all members
        self.members: dict[bytes, LanPeer] = {}  # by static key
        self.by_address: dict[bytes, LanPeer] = {}
        self.drops: Counter[str] = Counter()  # by reason
        self.has_ipv4 = True  # the interface; where the subnet clashes it has not
        self.weight = 1.0  # of a packet to everybody, in a room of this size

    @property
    def subnet_broadcast(self) -> bytes:
        return self.subnet[:3] + b"\xff"

    def set_has_ipv4(self, has_ipv4: bool) -> None:
        """Whether the interface has our IPv4 address."""
        if has_ipv4 != self.has_ipv4:
            self.has_ipv4 = has_ipv4
            for member in self.members.values():
                member.take_ours(self)

    def set(self, me: LanAddresses, subnet: bytes, others: Iterable[LanAddresses]) -> list[LanPeer]:
        """A newer roster.  Returns who is gone.  Raises ConfigurationError on a clash."""
        self.me, self.subnet = me, subnet
        others = list(others)
        self.weight = weight_in(1 + len(others))
        before, self.members = self.members, {}
        self.by_address = {}
        for place in others:
            member = LanPeer(place, self)
            member.link = self.links.get(place.static)
            if (known := before.pop(place.static, None)) is not None:
                member.allowance = known.allowance
                member.order = known.order
            self.members[place.static] = member
            for address in place.all:
                if address in self.by_address or address in me.all:
                    raise ConfigurationError("Two members of the room have one address: leave the room and create a new one.")
                self.by_address[address] = member
        for gone in before.values():
            gone.order.forget()
        return list(before.values())


def shown(packet: Buffer) -> str:
    """Return a description of the packet for the report of a fault."""
    return f"inner packet of {len(packet)} bytes, beginning with {bytes(packet[:SHOWN]).hex()}"
