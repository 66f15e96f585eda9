"""Where things are: a server by its word, this machine by its addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Final

import trio

from tunnel.errors import OfflineError, ServerUnreachableError
from tunnel.host.interfaces import ANYWHERE, local_addresses, source_address
from tunnel.server_spec import members, parse_server
from tunnel.units import Address

ADDRESSES_A_FAMILY: Final = 8  # of a name that are tried at once: of one server, or of servers that know nothing of each other
LIST_PATIENCE: Final = 0.3  # seconds that the names of a list are waited for, once one of them is known
OWN_INTERFACES: Final = "ptunnel"  # how the names of LAN interfaces begin
NO_NETWORK: Final = "This computer is not connected to a network."


def machine_hosts() -> list[str]:
    """The addresses of this machine that a peer could reach, but for those of LAN interfaces of ours: no tunnel in a tunnel."""
    return [local.address for local in local_addresses(overlays=False) if not local.interface.startswith(OWN_INTERFACES)]


def has_network(server: str = "", hosts: Callable[[], Iterable[str]] | None = None) -> bool:
    """Whether this machine has a route to anywhere, or the server is this machine itself.

    `hosts` gives the addresses of a machine with a network of its own, as in tests.
    """
    host = parse_server(server)[0] if server else ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return True
    if hosts is not None:
        return any(True for _ in hosts())
    return any(source_address(somewhere) is not None for somewhere in ANYWHERE.values()) or bool(machine_hosts())


def unknown_name(host: str, error: Exception) -> ServerUnreachableError:
    """Why the look-up of a server's name failed.  A name under .invalid leads nowhere, whoever is asked (RFC 6761 §6.4)."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN and not host.rstrip(".").endswith(".invalid"):
        return OfflineError(f"Nobody tells where the server name {host} leads: no name server (DNS) answers.")
    return ServerUnreachableError(f"The server name {host} is unknown: check it, and your network connection.")


class Names:
    """The names of a list of servers, looked up together; often a list of one."""

    def __init__(self, name: str) -> None:
        self._members = members(name)
        self._known: dict[str, list[Address]] = {}  # as they were told last

    @property
    def are_several(self) -> bool:
        return len(self._members) > 1

    @property
    def are_known(self) -> bool:
        """All have been told once."""
        return len(self._known) == len(self._members)

    async def look(self) -> list[Address]:
        """Where the servers may be.  A name that nobody tells now costs the others no wait; it stays where it was told last.

        Raises ConfigurationError, ServerUnreachableError (unknown name), OfflineError.
        """
        if not self.are_several:
            return await _resolve(self._members[0])
        errors: list[ServerUnreachableError] = []
        fresh: dict[str, list[Address]] = {}

        async def look(member: str) -> None:
            try:
                fresh[member] = await _resolve(member)
            except ServerUnreachableError as error:
                errors.append(error)
            if fresh:
                patience.deadline = min(patience.deadline, trio.current_time() + LIST_PATIENCE)

        with trio.CancelScope() as patience:
            async with trio.open_nursery() as nursery:
                for member in self._members:
                    nursery.start_soon(look, member)
        self._known.update(fresh)
        if not self._known:
            raise errors[0]
        found = [address for member in self._members for address in self._known.get(member, ())]
        return list(dict.fromkeys(found))


async def _resolve(name: str) -> list[Address]:
    """Of one server."""
    host, port = parse_server(name)
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise unknown_name(host, error) from None
    addresses: dict[bool, list[Address]] = {False: [], True: []}
    for *_, sockaddr in found:
        address = Address(str(sockaddr[0]), port)
        of_family = addresses[address.is_ipv6]
        if address not in of_family and len(of_family) < ADDRESSES_A_FAMILY:
            of_family.append(address)
    return [*addresses[True], *addresses[False]]
