"""A room's packets and its interface: the roster as addresses, the interface in step with it, the members' links in between."""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import trio

from tunnel.errors import ConfigurationError, TunnelError
from tunnel.faults import Faults
from tunnel.room.core import addresses
from tunnel.room.core.addresses import SUBNET_BITS, ULA_BITS
from tunnel.room.core.records import Allowances
from tunnel.room.core.roster import Member, Roster
from tunnel.room.members import LanAddresses
from tunnel.room.plane import LanForward
from tunnel.shell.lasting import last
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.doors.tun.config import InterfaceConfig


class LanInterface(Protocol):
    """The part of an interface that a room uses: doors/tun/host.py and namespace.py have it.  `device` is a TapDevice."""

    @property
    def device(self) -> Any: ...

    @property
    def name(self) -> str: ...

    @property
    def facts(self) -> list[str]: ...

    async def set_mtu(self, mtu: int) -> None: ...

    async def renumber(self, config: InterfaceConfig) -> list[str]: ...

    async def set_names(self, names: Mapping[str, Iterable[str]]) -> None: ...

    async def why_shut(self) -> str | None: ...

    async def run_discovery(self, send: Callable[[bytes], None], faults: Faults, warn: Callable[[str], None]) -> None: ...

    async def close(self) -> None: ...


#: Segments that the kernel puts into one super-packet: as many as leave in one burst over Ethernet, where 65,507 bytes hold 44
#: datagrams of 1,472.  One more would cost a second burst for a handful.
SUPER_SEGMENTS: Final = 44

CONFIGURE_INTERVAL: Final = 1.0  # seconds from one new numbering to the next: each takes half a second of a processor
NAMES_INTERVAL: Final = 60.0  # seconds after which the names are written anew, should another program have replaced the file
MAX_SUBNETS: Final = 8  # other networks that a room's creator may lead into it here in a row, whatever rosters say; ...
SUBNET_REFILL: Final = Seconds(600.0)  # ... and after that one in so long: else it could try all that a machine may reach

CREATOR: Final = b""  # the one key of an allowance
TOO_MANY_SUBNETS: Final = (
    "The creator of the room changes its network again and again, so this machine stays on the former one for {minutes} minutes. "
    "If that is not what you expect of whoever made the room, leave it."
)

OpenInterface: TypeAlias = "Callable[[InterfaceConfig], Awaitable[LanInterface]]"


def lacks_privilege() -> bool:
    """Whether this process may not open an interface, although this system could."""
    from tunnel.doors.tun.privileges import CAP_NET_ADMIN, has_capability

    return sys.platform == "linux" and not has_capability(CAP_NET_ADMIN)


def require_host_interface() -> None:
    """Before a person is asked for anything.  Raises ConfigurationError where this process may not open an interface."""
    if sys.platform != "linux":
        raise ConfigurationError("A LAN interface needs Linux: run it there.")
    from tunnel.doors.tun.create import NO_PRIVILEGE

    if lacks_privilege():
        raise ConfigurationError(NO_PRIVILEGE)


async def open_on_host(config: InterfaceConfig, *, drop: bool = True) -> LanInterface:
    """For all programs of this machine.  Needs privilege, which this process gives up, unless not `drop`.

    Raises ConfigurationError.
    """
    require_host_interface()
    from tunnel.doors.tun.host import open_host_interface

    return await open_host_interface(config, drop=drop)


async def give_up_privileges() -> int:
    """After interfaces were opened without: for good.  How many threads keep theirs."""
    from tunnel.doors.tun.process import drop_privileges_everywhere

    return len(await drop_privileges_everywhere())


def interface_config(
    roster: Roster | None, me: Member | None, mtu: int | None = None, *, any_subnet: bool = False
) -> InterfaceConfig:
    """For that member; without a roster one that has no addresses yet."""
    from tunnel.doors.tun.config import MIN_MTU, MINECRAFT, InterfaceConfig

    mtu = MIN_MTU if mtu is None else mtu
    if roster is None or me is None:
        return InterfaceConfig(mac=addresses.mac(addresses.LAST_HOST).hex(":"), ipv4=None, mtu=mtu, any_subnet=any_subnet)
    return InterfaceConfig(
        mac=addresses.mac(me.host).hex(":"),
        ipv4=(roster.ipv4(me), SUBNET_BITS),
        ipv6=((roster.ipv6(me), ULA_BITS), (addresses.link_local_text(me.host), ULA_BITS)),
        mtu=mtu,
        gso_max_segs=SUPER_SEGMENTS,
        routes=(MINECRAFT,),
        any_subnet=any_subnet,
    )


def place(roster: Roster, member: Member) -> LanAddresses:
    """The member's addresses, as packets are judged by them."""
    return LanAddresses(
        member.name,
        member.static,
        addresses.ipv4(roster.subnet, member.host),
        (addresses.ipv6(roster.ula, member.host), addresses.link_local(member.host)),
    )


class Plane:
    """Made with an open interface; nothing is carried before the first set_roster."""

    def __init__(
        self,
        interface: LanInterface,
        clock: Callable[[], Instant],
        warn: Callable[[str], None],
        faults: Faults | None = None,
        *,
        any_subnet: bool = False,
    ) -> None:
        """`warn` is told, in a sentence each, what the interface would not do.  `any_subnet`: see InterfaceConfig."""
        self._faults = Faults() if faults is None else faults
        self.interface = interface
        self.forward = LanForward(
            interface.device,
            clock=clock,
            set_mtu=interface.set_mtu,
            note=getattr(interface, "note", None),
            warn=warn,
            faults=self._faults,
        )
        self._clock = clock
        self._warn = warn
        self._any_subnet = any_subnet
        self._wanted: tuple[Roster, Member] | None = None
        self._configured: tuple[Roster, Member] | None = None  # what the interface has now
        self._subnets = Allowances(MAX_SUBNETS, SUBNET_REFILL)  # of the creator
        self._applied: tuple[object, ...] = ()
        self._names_at = -math.inf  # when they are written anew
        self._has_waited = False  # and a person was told
        self._facts: list[str] = []  # that hold now: they were told
        self._shut: str | None = None  # by a firewall, likewise
        self._trouble = ""  # of names and numbers, likewise
        self._changed = trio.Event()
        self.is_ready = trio.Event()  # addresses and names are set

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the drops by place and reason; of the reflector and ethernets also what passed."""
        found = {"packets": dict(self.forward.table.drops), "interface": dict(self.interface.device.errors)}
        for place in ("reflector", "ethernets"):
            watcher = getattr(self.interface, place, None)
            if watcher is not None:
                found[place] = dict(watcher.counters)
        return found

    def set_roster(self, roster: Roster, me: Member) -> None:
        """Set the members: one that is gone is heard no more at once; the interface follows in a moment."""
        others = [place(roster, member) for member in roster.members if member.static != me.static]
        self.forward.set_roster(place(roster, me), roster.subnet, others, addresses.mac(me.host))
        self._wanted = (roster, me)
        self._changed.set()

    def look_again(self) -> None:
        """The machine's own networks have changed: what of the room's addresses the interface may have, with them."""
        if self._wanted is not None:
            self._applied = ()
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled.  Raises ConfigurationError when the interface is gone."""
        self._tell(self.interface.facts)
        while self._wanted is None:
            await self._changed.wait()
        discover = partial(self.interface.run_discovery, self.forward.send_to_all, self._faults, self._warn)
        async with trio.open_nursery() as nursery:
            for what, task in (
                ("kept the interface from following the room", self._follow),
                ("interrupted the packets of the room", self.forward.run),
                ("interrupted what programs here announce to the room", discover),
            ):
                nursery.start_soon(last, self._faults, "interface", what, task, TunnelError)

    async def _follow(self) -> None:
        """Keep addresses and names of the interface in step with the roster."""
        while True:
            self._changed = trio.Event()
            roster, me, patience = self._next()
            names = {member.name: (roster.ipv4(member), roster.ipv6(member)) for member in roster.members}
            wanted = (roster.subnet, roster.ula, me.host, tuple(names.items()))
            is_new = wanted[:3] != self._applied[:3]
            try:
                if is_new:
                    config = interface_config(roster, me, self.forward.mtu, any_subnet=self._any_subnet)
                    self._tell(await self.interface.renumber(config))
                    self.forward.table.set_has_ipv4(getattr(self.interface, "has_ipv4", True))
                if wanted != self._applied or trio.current_time() >= self._names_at:
                    self._applied = wanted
                    self._names_at = trio.current_time() + NAMES_INTERVAL
                    await self.interface.set_names(names)
                    self._trouble = ""
            except ConfigurationError as error:
                self._applied = wanted
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._warn(self._trouble)
            self.is_ready.set()
            if is_new:
                await self._look_at_firewall()
            if is_new:  # whoever signs the rosters may change it as often as he likes
                await trio.sleep(CONFIGURE_INTERVAL)
            with trio.move_on_after(min(patience, max(0.0, self._names_at - trio.current_time()))):
                await self._changed.wait()

    def _tell(self, facts: list[str]) -> None:
        """Those that were not so before."""
        new = [fact for fact in dict.fromkeys(facts) if fact not in self._facts]
        self._facts = list(facts)
        for fact in new:
            self._warn(fact)

    async def _look_at_firewall(self) -> None:
        shut = await self.interface.why_shut()
        if shut is not None and shut != self._shut:
            self._warn(shut)
        self._shut = shut

    def _next(self) -> tuple[Roster, Member, float]:
        """Return the wanted configuration of the interface, and the seconds until it changes by itself."""
        assert self._wanted is not None
        if self._configured is not None and _networks(self._configured[0]) != _networks(self._wanted[0]):
            now = self._clock()
            wait = self._subnets.ready_at(now, CREATOR) - now
            if wait > 0:
                if not self._has_waited:
                    self._warn(TOO_MANY_SUBNETS.format(minutes=math.ceil(wait / 60)))
                self._has_waited = True
                return *self._configured, wait
            self._subnets.note(now, CREATOR)
        self._has_waited = False
        self._configured = self._wanted
        return *self._wanted, math.inf


def _networks(roster: Roster) -> tuple[bytes, bytes]:
    return roster.subnet, roster.ula
