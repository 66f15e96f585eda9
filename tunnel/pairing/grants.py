"""Grants: what one peer may reach through us.  Everything that is not granted is denied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from tunnel.ends import MAX_PORT, checked_path, find_path, is_path, net_text, path_of, read_net, without_proxy
from tunnel.errors import ConfigurationError, StateError
from tunnel.notation import (
    HOST,
    NAME,
    PROTOCOLS,
    SERVICES,
    Protocol,
    read_ports,
    read_remote,
    read_share,
    split_protocols,
)

THIS_MACHINE: Final = "127.0.0.1"

Kind = Literal["port", "net", "remote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Ports `first` to `last` of `host`; without a `name` it is this machine, and the peer asks by port number.

    A `host` of `unix:/PATH` is a Unix socket here, for which the peer asks by its `name`, or by the path where it has none.
    `kind` "net": of all machines in the network `host`, for which the peer asks by address or host name.
    `kind` "remote": ports of this machine, at the address `host`, on which the peer may have us listen for it.
    """

    protocol: Protocol
    host: str
    first: int
    last: int
    name: str | None = None
    proxy: bool = False  # the program is told by the PROXY protocol who connects
    kind: Kind = "port"

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket, and no port."""
        return is_path(self.host)

    @property
    def asked(self) -> str | None:
        """By what the peer asks, beside the port; None: by the port alone."""
        return self.host if self.is_socket and self.name is None else self.name

    def __str__(self) -> str:
        """For people, and as parse_grant reads it: `tcp/22`, `udp/5000-5010`, `tcp/nas=192.168.1.5:445`, `tcp/unix:/run/x`."""
        if self.kind == "net":
            return f"net/{net_text(self.protocol, self.host, self.first, self.last)}"
        kind = f"{self.protocol}+proxy" if self.proxy else self.protocol
        if self.is_socket:
            return f"{kind}/{f'{self.name}=' if self.name is not None else ''}{self.host}"
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if self.kind == "remote":
            return f"remote/{'' if self.host == THIS_MACHINE else f'{_bracketed(self.host)}:'}{ports}"
        if self.name is None:
            return f"{kind}/{ports}"
        return f"{kind}/{self.name}={_bracketed(self.host)}:{ports}"

    @property
    def place(self) -> tuple[Kind, str | None, str]:
        """Where the ports are: the name by which the peer asks, and the machine."""
        return (
            self.kind,
            (self.name.lower() if self.name is not None else None),
            self.host if self.is_socket else self.host.lower(),
        )

    def cut(self, first: int, last: int) -> tuple[tuple[Grant, ...], Grant | None]:
        """Return the grants without the ports `first` to `last`, and the part that was cut out; None: nothing."""
        low, high = max(self.first, first), min(self.last, last)
        if low > high:
            return (self,), None
        ends = ((self.first, low - 1), (high + 1, self.last))
        rest = tuple(replace(self, first=start, last=end) for start, end in ends if start <= end)
        return rest, replace(self, first=low, last=high)

    def beside(self, newer: Iterable[Grant]) -> list[Grant]:
        """Return the rest of this grant beside `newer` ones that differ in whether the program is told who connects."""
        pieces = [self]
        for other in newer:
            if other.place == self.place and other.protocol == self.protocol and other.proxy != self.proxy:
                pieces = [rest for piece in pieces for rest in piece.cut(other.first, other.last)[0]]
        return pieces

    def to_dict(self) -> dict[str, Any]:
        protocol = (
            self.protocol if self.kind == "port" else f"{self.kind}/{self.protocol}"
        )  # an older ptunnel grants nothing then
        record: dict[str, Any] = {"protocol": protocol, "name": self.name, "host": self.host}
        record |= {"first": self.first, "last": self.last}
        return record | {"proxy": True} if self.proxy else record


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_grant(text: str) -> tuple[Grant, ...]:
    """Read a share as tunnel.notation has it: `22`, `53/udp`, `nas=192.168.1.5:445`, `tcp/22`, `localhost:3000`.

    One grant for each protocol, tcp where none is said.  Raises ConfigurationError.
    """
    kind, slash, rest = text.strip().partition("/")
    if slash and kind.lower() == "net":
        return tuple(
            Grant(
                kind="net",
                protocol=PROTOCOLS[PROTOCOLS.index(each.protocol)],
                host=each.network,
                first=each.first,
                last=each.last,
            )
            for each in read_net(rest)
        )
    if slash and kind.lower() == "remote":
        host, first, last = read_remote(rest)
        return (Grant(kind="remote", protocol="tcp", host=host or THIS_MACHINE, first=first, last=last),)
    return _grants(text, ("tcp",))


def _grants(text: str, otherwise: tuple[Protocol, ...]) -> tuple[Grant, ...]:
    share = read_share(text)
    return tuple(
        Grant(
            protocol=each,
            name=share.name,
            host=share.host or THIS_MACHINE,
            first=share.first,
            last=share.last,
            proxy=share.proxy,
        )
        for each in share.protocols or otherwise
    )


class GrantSet:
    """The grants of one peer."""

    __slots__ = ("_announces", "_grants")

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._grants = tuple(dict.fromkeys(grants))
        self._announces = any(grant.proxy for grant in self._grants)

    @classmethod
    def parse(cls, *texts: str) -> GrantSet:
        """Raises ConfigurationError, also when one name would mean two places."""
        grants = [grant for text in texts for grant in parse_grant(text)]
        places: dict[tuple[str, str], Grant] = {}
        for grant in grants:
            if grant.name is not None and places.setdefault((grant.protocol, grant.name.lower()), grant) != grant:
                raise ConfigurationError(f"The name {grant.name!r} is given to two places; choose another for one of them.")
        return cls(grants)

    @classmethod
    def from_dicts(cls, records: Iterable[Mapping[str, Any]]) -> GrantSet:
        """Raises StateError for anything to_dicts() would not have written."""
        return cls(_grant_from(record) for record in records)

    def to_dicts(self) -> list[dict[str, Any]]:
        return [grant.to_dict() for grant in self._grants]

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._grants)

    def __len__(self) -> int:
        return len(self._grants)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrantSet) and self._grants == other._grants

    def __hash__(self) -> int:
        return hash(self._grants)

    def __repr__(self) -> str:
        return f"GrantSet({', '.join(map(str, self._grants))})"

    def union(self, newer: GrantSet) -> GrantSet:
        """Both; where both give the same name, or the same port with and without PROXY protocol, the newer one counts."""
        taken = {(grant.protocol, grant.name.lower()) for grant in newer if grant.name is not None}
        kept = (grant for grant in self if grant.name is None or (grant.protocol, grant.name.lower()) not in taken)
        return GrantSet((*(piece for grant in kept for piece in grant.beside(newer)), *newer))

    def without(self, text: str) -> tuple[GrantSet, GrantSet]:
        """(what is left, what was taken) when this is taken back: `22`, `5000-5010`, `nas`, `nas:445`, `nas=192.168.1.5:445`.

        With a protocol (`53/udp` or `udp/53`) that one alone, else both.  A port inside of a granted range leaves the rest of it.
        Raises ConfigurationError for what cannot be read, and where nothing of it was granted.
        """
        text = without_proxy(text)
        if text.partition("/")[0].lower() in ("net", "remote"):
            return self._without(text, parse_grant(text), PROTOCOLS)
        is_socket = find_path(text.removeprefix("tcp/")) is not None
        rest, protocols = (text, ()) if is_socket else split_protocols(text)
        head, colon, ports = rest.partition(":")
        named = [grant for grant in self if grant.name is not None and grant.name.lower() == head.lower()]
        if is_socket:
            wanted = _grants(text, ("tcp",))
        elif named:
            first, last = read_ports(text, ports) if colon else (1, MAX_PORT)
            wanted = tuple(replace(grant, first=first, last=last) for grant in named)
        elif NAME.fullmatch(head) and head.lower() not in SERVICES and (not colon or ports.isdecimal()) and head != "localhost":
            wanted = ()  # a name that it has not
        else:
            wanted = _grants(text, PROTOCOLS)
        return self._without(text, wanted, protocols or PROTOCOLS)

    def _without(self, text: str, wanted: Iterable[Grant], protocols: tuple[Protocol, ...]) -> tuple[GrantSet, GrantSet]:
        left: list[Grant] = []
        taken: list[Grant] = []
        for grant in self:
            pieces = [grant]
            for each in wanted:
                if grant.place == each.place and grant.protocol == each.protocol and grant.protocol in protocols:
                    cuts = [piece.cut(each.first, each.last) for piece in pieces]
                    taken += [cut for _, cut in cuts if cut is not None]
                    pieces = [rest for rests, _ in cuts for rest in rests]
            left += pieces
        if not taken:
            shared = ", ".join(map(str, self)) or "nothing"
            raise ConfigurationError(f"{text!r} is not shared anyway; shared is {shared}.")
        return GrantSet(left), GrantSet(taken)

    def allows(self, protocol: str, target: int | str) -> tuple[str, int] | None:
        """Where a stream or flow to `target` shall go: host and port, as `find` says.  None: denied."""
        found = self.find(protocol, target)
        return None if found is None else (found[0].host, found[1])

    def announces(self, protocol: str, target: int | str) -> bool:
        """Whether the program there is told by the PROXY protocol who connects."""
        found = self.find(protocol, target) if self._announces else None
        return found is not None and found[0].proxy

    def nets(self, protocol: str, port: int) -> list[Grant]:
        """The networks of which this port may be reached."""
        return [each for each in self if each.kind == "net" and each.protocol == protocol and each.first <= port <= each.last]

    def lets_listen(self, host: str, port: int) -> bool:
        """Whether the peer may have us listen there for it."""
        return any(each.kind == "remote" and each.host == host and each.first <= port <= each.last for each in self)

    def find(self, protocol: str, target: int | str) -> tuple[Grant, int] | None:
        """The grant for a stream or flow to `target` (a port of this machine, NAME, NAME:port or unix:/PATH), and the port.

        Takes whatever the peer sent.
        """
        if isinstance(target, str) and is_path(target):
            found = (grant for grant in self._grants if grant.host == target and grant.name is None)
            return next(((grant, grant.first) for grant in found if grant.protocol == protocol), None)
        name: str | None = None
        port: int | None
        if isinstance(target, str):
            head, colon, tail = target.rpartition(":")
            if colon:
                name, port = head, _port(tail)
                if port is None:
                    return None
            else:
                port = _port(target)
                name = target if port is None else None
        else:
            port = target
        for grant in self._grants:
            if grant.kind != "port" or grant.protocol != protocol or (grant.name is None) != (name is None):
                continue
            if name is None and grant.is_socket:
                continue
            if name is not None and grant.name is not None and grant.name.lower() != name.lower():
                continue
            if port is None:
                return grant, grant.first
            if grant.first <= port <= grant.last:
                return grant, port
        return None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


def _grant_from(record: Mapping[str, Any]) -> Grant:
    try:
        protocol, name, host = record["protocol"], record["name"], record["host"]
        first, last, proxy = record["first"], record["last"], record.get("proxy", False)
    except (AttributeError, KeyError, TypeError):
        raise StateError("A saved grant is incomplete.") from None
    kind: Kind = "port"
    if isinstance(protocol, str) and "/" in protocol:
        written, _, protocol = protocol.partition("/")
        if written not in ("net", "remote"):
            raise StateError("A saved grant makes no sense.")
        kind = "net" if written == "net" else "remote"
    sound = (
        protocol in PROTOCOLS
        and type(proxy) is bool
        and (not proxy or protocol == "tcp")
        and (name is None or (isinstance(name, str) and NAME.fullmatch(name) is not None))
        and isinstance(host, str)
        and _is_place(kind, protocol, host)
        and type(first) is type(last) is int
        and (kind == "port" or (name is None and not proxy))
        and 1 <= first <= last <= MAX_PORT
    )
    if not sound:
        raise StateError("A saved grant makes no sense.")
    return Grant(protocol=protocol, name=name, host=host, first=first, last=last, proxy=proxy, kind=kind)


def _is_place(kind: Kind, protocol: object, host: str) -> bool:
    """Whether `to_dict` writes such a host."""
    if kind == "port":
        return _is_socket(protocol, host) if is_path(host) else HOST.fullmatch(host) is not None
    try:
        made = parse_grant(f"{kind}/{net_text('tcp', host, 1, 1) if kind == 'net' else f'{_bracketed(host)}:1'}")
    except ConfigurationError:
        return False
    return made[0].host == host and (kind == "net" or protocol == "tcp")


def _is_socket(protocol: object, host: str) -> bool:
    try:
        checked_path(host, path_of(host))
    except ConfigurationError:
        return False
    return protocol == "tcp" and ":" not in path_of(host)
