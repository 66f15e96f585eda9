"""Where a host name leads that the person gave to `expose`: whoever answers for it chooses, so not to this machine.

A name is looked up anew for each connection, and its answer may change (DNS rebinding).  Addresses are as the person wrote them.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any, Final

import trio

from tunnel.core.scope import is_loopback, is_reserved, unmapped
from tunnel.host.interfaces import own_addresses

Place = tuple[int, tuple[Any, ...]]  # family, and an address of it: host and port at least

_LOCALHOST: Final = "localhost"


class MisledError(OSError):
    """A name led to this machine, or to an address that is nobody's; `sentence` is for the person who gave the name."""

    def __init__(self, host: str, port: int, found: str) -> None:
        super().__init__(errno.EHOSTUNREACH, "the name leads where it may not")
        shown = f"[{found}]" if ":" in found else found
        self.sentence = (
            f"The name {host} leads to {found}, an address of this machine or a reserved one, so nothing was connected: "
            f"if that is meant, share the address, as in NAME={shown}:{port}."
        )


async def resolve(host: str, port: int) -> list[Place]:
    """(family, address) pairs to try in order.  Numeric hosts and localhost cost no thread.  Raises OSError."""
    if _is_localhost(host):
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = await look_up(host)
    places = [(family, (address[0], port, *address[2:])) for family, address in found]
    if _is_literal(host):  # with a zone
        return places
    if not places:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
    allowed = may_lead_to(host, [address[0] for _family, address in places])
    kept = [place for place in places if place[1][0] in allowed]
    if not kept:
        raise MisledError(host, port, places[0][1][0].partition("%")[0])
    return kept


class _Lookup:
    """One that is under way, for all that wait for it."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.found: list[tuple[int, tuple[Any, ...]]] = []
        self.error: Exception | None = None


_under_way: Final[trio.lowlevel.RunVar[dict[str, _Lookup]]] = trio.lowlevel.RunVar("names that are looked up")


async def look_up(host: str) -> list[tuple[int, tuple[Any, ...]]]:
    """One thread a name, however many ask for it: whoever waits for a dead one takes no thread from the others.

    Raises OSError.
    """
    try:
        under_way = _under_way.get()
    except LookupError:
        under_way = {}
        _under_way.set(under_way)
    lookup = under_way.get(host)
    if lookup is None:
        lookup = under_way[host] = _Lookup()
        trio.lowlevel.spawn_system_task(_ask, host, lookup, under_way)
    await lookup.over.wait()
    if isinstance(lookup.error, UnicodeError):  # an empty or overlong label: the codec's way to say that there is no such name
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is no host name")
    if lookup.error is not None:
        raise lookup.error
    return lookup.found


def lookups_under_way() -> int:
    """How many threads wait for a resolver now."""
    try:
        return len(_under_way.get())
    except LookupError:
        return 0


async def _ask(host: str, lookup: _Lookup, under_way: dict[str, _Lookup]) -> None:
    try:
        found = await trio.socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        lookup.found = [(family, address) for family, _type, _protocol, _name, address in found]
    except Exception as error:
        lookup.error = error
    finally:
        del under_way[host]
        lookup.over.set()


def may_lead_to(host: str, addresses: list[str]) -> set[str]:
    """Those of `addresses` to which the name may lead: none that is reserved, and this machine's own only by its own name."""
    ours = set() if _is_own_name(host) else {unmapped(ipaddress.ip_address(each)) for each in own_addresses()}
    found = set()
    for text in addresses:
        address = unmapped(ipaddress.ip_address(text.partition("%")[0]))
        is_ours = address in ours or (is_loopback(address) and not _is_own_name(host))
        if not is_ours and not is_reserved(address):
            found.add(text)
    return found


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_localhost(host: str) -> bool:
    """It and all names below it mean loopback, and nobody is asked: RFC 6761 §6.3."""
    name = host.rstrip(".").casefold()
    return name == _LOCALHOST or name.endswith(f".{_LOCALHOST}")


def _is_own_name(host: str) -> bool:
    """How this machine calls itself: who wrote that has said that this machine is meant."""
    own = socket.gethostname().casefold()
    return host.rstrip(".").casefold() in (own, own.partition(".")[0])
