"""A LAN interface on the host itself: the TAP in our hands, its configuration in the hands of a small privileged child.

Order: TAP and packet socket are opened here, the keeper is started, then this process gives up every capability.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import math
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import trio

from tunnel.doors.tun import firewall, process
from tunnel.doors.tun.config import MINECRAFT, InterfaceConfig
from tunnel.doors.tun.create import NO_PRIVILEGE
from tunnel.doors.tun.device import TapDevice, open_tap
from tunnel.doors.tun.ethernet import Ethernets
from tunnel.doors.tun.groups import GroupMirror
from tunnel.doors.tun.listeners import is_bound_to
from tunnel.doors.tun.privileges import CAP_NET_ADMIN, has_capability, inherited
from tunnel.doors.tun.reflector import Reflector, parse_udp, rewrite_source
from tunnel.doors.tun.routes import networks_of
from tunnel.doors.tun.wall import open_wall_socket
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.faults import Faults

HOSTS_PATH: Final = "/etc/hosts"
BOUND: Final = (
    "A program here asks the room by UDP port {port} of {address} alone, and so does not hear the room's answers. If that is a "
    "game whose list stays empty, run it with  ptunnel exec  or let it use the room's address."
)
LINK_SCOPE: Final = 2  # of an IPv6 group: this or less stays on one link (RFC 4291 §2.7)
ASK_INTERVAL: Final = 1.0  # seconds between two looks at whose sockets they are, until one has been told of
#: What browsers and desktops ask all day, by each adapter, and no game does: SSDP, WS-Discovery, mDNS, LLMNR, NetBIOS and others.
NO_GAMES: Final = frozenset((1900, 3702, 5353, 5355, 137, 138, 17500, 21027, 57621))
MAX_BURST: Final = 64  # announcements handled before others get their turn


class HostInterface:
    """A LAN interface that all programs of this machine use.  Made by open_host_interface; close it in the end.

    `facts` are sentences for the user about what this machine would not do; `reflector` is None where it has no packet sockets.
    """

    def __init__(
        self,
        config: InterfaceConfig,
        device: TapDevice,
        reflector: Reflector | None,
        keeper: subprocess.Popen[bytes],
        client: process.KeeperClient,
        ethernets: Ethernets | None = None,
        wall: socket.socket | None = None,
    ) -> None:
        """`wall` is the socket that keeps the rules of tunnel.doors.tun.wall in place, whatever becomes of the keeper."""
        self.device = device
        self.reflector = reflector
        self.ethernets = ethernets
        self._wall = wall
        self.facts: list[str] = []
        self.has_ipv4 = True  # its own address; it does without in a subnet that this machine uses elsewhere
        self._keeper = keeper
        self._client = client
        self._config = config
        self._groups = GroupMirror(device.name)
        self._looked_at = -math.inf
        self._has_warned = False

    @property
    def name(self) -> str:
        return self.device.name

    async def set_mtu(self, mtu: int) -> None:
        """Bytes, between MIN_MTU and MAX_MTU.  Raises ConfigurationError."""
        await self._client.set_mtu(mtu)

    async def renumber(self, config: InterfaceConfig) -> list[str]:
        """Replace addresses and routes; the name stays what it is.  Gives facts.  Raises ConfigurationError."""
        facts = await self._client.configure(dataclasses.replace(config, name=self.device.name))
        self._config = config
        with contextlib.suppress(OSError):
            self.has_ipv4 = any(network.version == 4 for network in networks_of(self.device.name))
        return facts

    async def run_discovery(self, send: Callable[[bytes], None], faults: Faults, warn: Callable[[str], None]) -> None:
        """Until cancelled: give `send` each IP packet that a local program announced elsewhere, as one that we send into the LAN.

        `warn` is told, once, of a program that will not hear the answers.

        Joins on the LAN what programs join elsewhere, too.  Whether all of it may go out is for `send` to decide, by its rate.
        `faults` is told of what one packet made us raise.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._groups.run)
            if self.ethernets is not None:
                nursery.start_soon(self.ethernets.run, self.device.writev)
            reflector = self.reflector
            while reflector is not None:
                await reflector.wait_readable()
                for _ in range(MAX_BURST):
                    packet = reflector.read()
                    if packet is None:
                        break
                    try:
                        self._groups.hint(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
                        send(rewrite_source(packet, *self._sources(packet)))
                        if not self._has_warned:
                            self._look_who_asks(packet, warn)
                    except MalformedPacket:  # a family for which we have no address
                        reflector.counters["family"] += 1
                    except Exception as error:
                        reflector.counters["fault"] += 1
                        faults.note("reflector", "left a broadcast of this machine out of the room", error)

    def _look_who_asks(self, packet: bytes, warn: Callable[[str], None]) -> None:
        now = trio.current_time()
        _, (port, target), _ = parse_udp(packet)
        if packet[0] >> 4 != 4 or target in NO_GAMES or now - self._looked_at < ASK_INTERVAL:
            return
        self._looked_at = now
        if is_bound_to(packet[12:16], port):
            self._has_warned = True
            warn(BOUND.format(port=port, address=ipaddress.IPv4Address(packet[12:16])))

    async def why_shut(self) -> str | None:
        """A sentence where a firewall of this machine keeps the room out; it takes some seconds then."""
        return firewall.sentence(self.name) if await firewall.is_shut(self.device, self._config) else None

    def note(self, packet: bytes | memoryview) -> bool:
        """This broadcast or multicast packet goes into the LAN by itself, or came from there; see Reflector.note."""
        ours = self._config.ipv4
        if self.ethernets is not None and ours is not None and packet[12:16] == ipaddress.IPv4Address(ours[0]).packed:
            self.ethernets.carry_out(packet)
        return self.reflector is not None and self.reflector.note(packet)

    def _sources(self, packet: bytes) -> tuple[bytes, bytes]:
        """Our inner IPv4 and IPv6 addresses, the latter of the scope of the packet's group (RFC 4291 §2.7, RFC 6724 §5)."""
        config = self._config
        is_for_link = packet[0] >> 4 == 6 and packet[25] & 15 <= LINK_SCOPE
        candidates = [ipaddress.IPv6Address(address) for address, _ in config.ipv6]
        fitting = [address for address in candidates if address.is_link_local == is_for_link] or candidates
        inner_v4 = ipaddress.IPv4Address(config.ipv4[0]).packed if config.ipv4 is not None else b""
        return inner_v4, fitting[0].packed if fitting else b""

    async def set_names(self, names: Mapping[str, Iterable[str]]) -> None:
        """Let NAME.ptunnel stand for the addresses, in place of all names before.  Raises ConfigurationError."""
        await self._client.set_names({name: list(addresses) for name, addresses in names.items()})

    async def close(self) -> None:
        """Take names and interface away; brief, and not cut short by a cancellation."""
        self._client.quit()
        try:
            await process.end(self._keeper)
        finally:
            self._groups.close()
            for held in (self.ethernets, self.reflector, self.device, self._wall):
                if held is not None:
                    held.close()


async def open_host_interface(
    config: InterfaceConfig, *, hosts_path: str | Path = HOSTS_PATH, drop: bool = True, reflect: bool = True
) -> HostInterface:
    """Make, configure and bring up the interface, then give up this process's privileges for good (unless not `drop`).

    The interface may get another name than config.name when that is taken.  Takes about half a second.
    Raises ConfigurationError with a sentence: no privilege, no /dev/net/tun, refused by the kernel.
    """
    if not has_capability(CAP_NET_ADMIN):
        raise ConfigurationError(NO_PRIVILEGE)
    with contextlib.ExitStack() as on_failure:
        device = open_tap(config.name)
        on_failure.callback(device.close)
        facts = []
        reflector = ethernets = None
        if reflect:
            try:
                reflector = Reflector(device.name)
                on_failure.callback(reflector.close)
                ethernets = Ethernets(device.name, [ipaddress.IPv4Network(MINECRAFT)[0].packed])
                on_failure.callback(ethernets.close)
                reflector.copy_ports = ethernets.ports
            except ConfigurationError as error:
                facts.append(str(error))
        ours, theirs = process.socket_pair()
        client = process.KeeperClient(ours)
        on_failure.callback(ours.close)
        wall = None
        with contextlib.suppress(OSError):  # no nf_tables; the keeper says so
            wall = open_wall_socket()
            on_failure.callback(wall.close)
        passed = [theirs.fileno(), *([wall.fileno()] if wall is not None else [])]
        words = process.python_words(
            "tunnel.doors.tun.keeper",
            str(theirs.fileno()),
            device.name,
            str(hosts_path),
            str(passed[1] if wall is not None else -1),
        )
        with theirs, inherited(CAP_NET_ADMIN):
            keeper = process.spawn(words, passed, stdin=subprocess.DEVNULL, start_new_session=True)
        on_failure.callback(_kill, keeper)
        on_failure.callback(client.quit)
        interface = HostInterface(config, device, reflector, keeper, client, ethernets, wall)
        facts += await interface.renumber(config)
        if drop:
            left = await process.drop_privileges_everywhere()
            if left:
                facts.append(f"{len(left)} threads of this process keep their privileges.")
        interface.facts = facts
        on_failure.pop_all()
        return interface


def _kill(keeper: subprocess.Popen[bytes]) -> None:
    """After `quit`: whatever it is doing, it is not needed; the kernel takes the interface away."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        keeper.wait(process.GOODBYE_TIMEOUT)
        return
    keeper.kill()
    keeper.wait()
