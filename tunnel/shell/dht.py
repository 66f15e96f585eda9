"""`ptunnel doctor --server dht` under trio: nodes of the Mainline DHT are asked where they see us, over IPv4 and IPv6 at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from tunnel.dht.diagnosis import Diagnosis
from tunnel.dht.views import ENOUGH
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.errors import ConfigurationError, OfflineError, ServerUnreachableError
from tunnel.host.clock import boottime
from tunnel.nat.behaviour import Mapping
from tunnel.nat.report import Findings, PortMapFindings, Ports, describe, describe_portmap
from tunnel.server_spec import DHT, split_entry
from tunnel.shell.doctor import Examination, examine_portmap, own_address, walled
from tunnel.shell.places import NO_NETWORK, has_network
from tunnel.shell.sockets import OpenSocket
from tunnel.units import Address

LOOKUP_PATIENCE: Final = 5.0  # seconds for the names of the entry nodes
ADDRESSES_A_NAME: Final = 2  # of an entry node in each family
_MAPPINGS: Final = {None: Mapping.UNKNOWN, False: Mapping.ENDPOINT_INDEPENDENT, True: Mapping.DEPENDENT}
_HELP: Final = "Port mapping (UPnP-IGD, NAT-PMP or PCP) at the router, IPv6, or a server with a relay would help."


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtExamination(Examination):
    """The findings from nodes of the DHT."""

    views: tuple[int, int]  # networks whose nodes said where they see us, over IPv4 and IPv6

    @property
    def asked(self) -> str:
        return "nodes"

    @property
    def is_reached(self) -> bool:
        return self.ipv4.round_trip is not None or self.ipv6.round_trip is not None

    @property
    def summary(self) -> str:
        ipv4, ipv6, mapped = self.ipv4, self.ipv6, self.portmap
        if not self.has_network:
            return NO_NETWORK
        if not self.is_reached:
            return (
                "No node of the DHT answers: this network blocks UDP, or those that are asked first are gone "
                "(dht_bootstrap in config.toml names others)."
            )
        if mapped is not None and mapped.external is not None and mapped.is_public:
            return "Direct paths to nearly every peer: the router maps a port."
        if any(each.seen is not None and not each.mapping.is_hard for each in (ipv4, ipv6)):
            return "Direct paths to nearly every peer: this machine is seen at one port, whoever looks."
        if ipv4.seen is None:
            return "Nodes of the DHT answer, and too few of them say where they see this machine."
        if ipv4.ports is Ports.SEQUENTIAL:
            return f"Direct paths only where the next port is foretold, and the DHT has no relay. {_HELP}"
        return f"Direct paths only to peers whose network lets strangers in, and the DHT has no relay. {_HELP}"

    def sentences(self) -> list[str]:
        """For a person, the most important first."""
        lines = [self.summary, *_describe(self.ipv4, self.views[0])]
        if self.ipv4.own is not None:
            lines.append(describe_portmap(self.portmap))
        return lines + _describe(self.ipv6, self.views[1])

    def to_dict(self) -> dict[str, Any]:
        return {**super(DhtExamination, self).to_dict(), "views": {"ipv4": self.views[0], "ipv6": self.views[1]}}


def _describe(found: Findings, views: int) -> list[str]:
    family = "IPv6" if found.is_ipv6 else "IPv4"
    if found.own is None:
        return describe(found)
    if found.server is None:
        return [f"No node by which the DHT is entered has an {family} address, so nothing is known of {family} here."]
    if found.round_trip is None:
        return [f"No node of the DHT answers over {family}."]
    if found.seen is None:
        return [f"{family}: Fewer than {ENOUGH} nodes in different networks agree about where they see this machine."]
    agree = f"Nodes in {views} networks were asked."
    if not found.is_translated and not found.mapping.is_hard:
        return [f"{family}: This machine has a public address. {agree}"]
    if not found.mapping.is_hard:
        return [f"{family}: The router uses one port for all destinations. {agree}"]
    order = "one after the other" if found.ports is Ports.SEQUENTIAL else "by chance"
    return [f"{family}: The router uses a new port for every destination, {order}. {agree}"]


async def examine_dht(bootstrap: str, *, opener: OpenSocket = open_socket, portmap: bool = True) -> DhtExamination:
    """Some two seconds, six where nobody answers.  Raises ConfigurationError, OfflineError, ServerUnreachableError."""
    entry = await find_entry(bootstrap)
    results = {family: Findings(is_ipv6=family, own=None) for family in (False, True)}
    views = {False: 0, True: 0}
    mapped: list[PortMapFindings | None] = [None]
    async with trio.open_nursery() as nursery:
        for is_ipv6 in (False, True):
            of_family = [each for each in entry if each.is_ipv6 == is_ipv6]
            look = partial(_examine_family, of_family, is_ipv6, opener, results, views)
            nursery.start_soon(walled, f"ended the look at IPv{6 if is_ipv6 else 4}", look)
        if portmap:
            nursery.start_soon(walled, "ended the look at the router", partial(examine_portmap, opener, mapped))
    return DhtExamination(
        server=DHT, ipv4=results[False], ipv6=results[True], portmap=mapped[0], views=(views[False], views[True])
    )


async def _examine_family(
    entry: Sequence[Address], is_ipv6: bool, opener: OpenSocket, results: dict[bool, Findings], views: dict[bool, int]
) -> None:
    server = entry[0] if entry else None
    own = own_address(server, is_ipv6)
    results[is_ipv6] = Findings(is_ipv6=is_ipv6, own=own, server=server)
    if server is None or own is None:
        return
    try:
        sock = opener("::" if is_ipv6 else "0.0.0.0", 0)
    except ConfigurationError:
        return
    try:
        diagnosis = Diagnosis(is_ipv6=is_ipv6, entry=entry, entropy=os.urandom, now=boottime())
        await _drive(diagnosis, sock)
        found = diagnosis.views
        views[is_ipv6] = len(found)
        ports = Ports.UNKNOWN
        if found.varies:
            ports = Ports.RANDOM if found.step is None else Ports.SEQUENTIAL
        elif found.seen is not None and found.seen.port == sock.local_address.port:
            ports = Ports.KEPT
        results[is_ipv6] = Findings(
            is_ipv6=is_ipv6,
            own=own,
            server=server,
            round_trip=diagnosis.round_trip,
            seen=found.seen,
            mapping=_MAPPINGS[found.varies],
            ports=ports,
            port_step=found.step,
        )
    finally:
        sock.close()


async def _drive(diagnosis: Diagnosis, sock: UdpSocket) -> None:
    """Until it is done, which its own patience sees to."""
    while not diagnosis.is_done:
        while (ready := diagnosis.poll_transmit()) is not None:
            sock.send(ready[0], memoryview(ready[1]), len(ready[1]))
        with trio.move_on_after(max(0.0, diagnosis.poll_timeout() - boottime())):
            await sock.wait_readable()
        while (batch := sock.receive()) is not None:
            for at in range(0, len(batch.buffer), batch.stride):
                diagnosis.handle_datagram(boottime(), batch.remote, batch.buffer[at : at + batch.stride])
        diagnosis.handle_timeout(boottime())


async def find_entry(text: str) -> list[Address]:
    """Where the entry nodes are, of those whose names are known.

    Raises ConfigurationError, OfflineError, ServerUnreachableError (none is known).
    """
    found: dict[int, list[Address]] = {}

    async def look(number: int, host: str, port: int) -> None:
        try:
            answers = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return
        addresses = list(dict.fromkeys(Address(str(sockaddr[0]), port) for *_, sockaddr in answers))
        of_families = ([each for each in addresses if each.is_ipv6 == is_ipv6] for is_ipv6 in (False, True))
        found[number] = [each for family in of_families for each in family[:ADDRESSES_A_NAME]]

    words = split_entry(text, "dht_bootstrap")
    with trio.move_on_after(LOOKUP_PATIENCE):
        async with trio.open_nursery() as nursery:
            for number, (host, port) in enumerate(words):
                nursery.start_soon(look, number, host, port)
    if not found:
        if not has_network():
            raise OfflineError(NO_NETWORK)
        names = ", ".join(host for host, _ in words)
        raise ServerUnreachableError(
            f"None of the names {names} is known: check them (dht_bootstrap), and your network connection."
        )
    return [address for number in sorted(found) for address in found[number]]
