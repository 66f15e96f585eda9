"""Grants: what one peer may reach through us.  Everything that is not granted is denied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tunnel.errors import ConfigurationError, StateError
from tunnel.notation import HOST, MAX_PORT, NAME, PROTOCOLS, SERVICES, Protocol, read_ports, read_share, split_protocols

THIS_MACHINE: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Ports `first` to `last` of `host`; without a `name` it is this machine, and the peer asks by port number."""

    protocol: Protocol
    host: str
    first: int
    last: int
    name: str | None = None

    def __str__(self) -> str:
        """For people, and as parse_grant reads it: `tcp/22`, `udp/5000-5010`, `tcp/nas=192.168.1.5:445`."""
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if self.name is None:
            return f"{self.protocol}/{ports}"
        return f"{self.protocol}/{self.name}={_bracketed(self.host)}:{ports}"

    @property
    def place(self) -> tuple[str | None, str]:
        """Where the ports are: the name by which the peer asks, and the machine."""
        return (self.name.lower() if self.name is not None else None), self.host.lower()

    def cut(self, first: int, last: int) -> tuple[tuple[Grant, ...], Grant | None]:
        """What is left without the ports `first` to `last`, and what they take from it; None: nothing."""
        low, high = max(self.first, first), min(self.last, last)
        if low > high:
            return (self,), None
        ends = ((self.first, low - 1), (high + 1, self.last))
        rest = tuple(replace(self, first=start, last=end) for start, end in ends if start <= end)
        return rest, replace(self, first=low, last=high)

    def to_dict(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "name": self.name, "host": self.host, "first": self.first, "last": self.last}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_grant(text: str) -> tuple[Grant, ...]:
    """Read a share as tunnel.notation has it: `22`, `53/udp`, `nas=192.168.1.5:445`, `tcp/22`, `localhost:3000`.

    One grant for each protocol, tcp where none is said.  Raises ConfigurationError.
    """
    return _grants(text, ("tcp",))


def _grants(text: str, otherwise: tuple[Protocol, ...]) -> tuple[Grant, ...]:
    share = read_share(text)
    return tuple(
        Grant(protocol=each, name=share.name, host=share.host or THIS_MACHINE, first=share.first, last=share.last)
        for each in share.protocols or otherwise
    )


class GrantSet:
    """The grants of one peer."""

    __slots__ = ("_grants",)

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._grants = tuple(dict.fromkeys(grants))

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
        """Both; where both give the same name, the newer one counts."""
        taken = {(grant.protocol, grant.name.lower()) for grant in newer if grant.name is not None}
        kept = (grant for grant in self if grant.name is None or (grant.protocol, grant.name.lower()) not in taken)
        return GrantSet((*kept, *newer))

    def without(self, text: str) -> tuple[GrantSet, GrantSet]:
        """(what is left, what was taken) when this is taken back: `22`, `5000-5010`, `nas`, `nas:445`, `nas=192.168.1.5:445`.

        With a protocol (`53/udp` or `udp/53`) that one alone, else both.  A port inside of a granted range leaves the rest of it.
        Raises ConfigurationError for what cannot be read, and where nothing of it was granted.
        """
        rest, protocols = split_protocols(text)
        head, colon, ports = rest.partition(":")
        named = [grant for grant in self if grant.name is not None and grant.name.lower() == head.lower()]
        if named:
            first, last = read_ports(text, ports) if colon else (1, MAX_PORT)
            wanted = tuple(replace(grant, first=first, last=last) for grant in named)
        elif NAME.fullmatch(head) and head.lower() not in SERVICES and (not colon or ports.isdecimal()) and head != "localhost":
            wanted = ()  # a name that it has not
        else:
            wanted = _grants(text, PROTOCOLS)
        left: list[Grant] = []
        taken: list[Grant] = []
        for grant in self:
            pieces = [grant]
            for each in wanted:
                if grant.place == each.place and grant.protocol == each.protocol and grant.protocol in (protocols or PROTOCOLS):
                    cuts = [piece.cut(each.first, each.last) for piece in pieces]
                    taken += [cut for _, cut in cuts if cut is not None]
                    pieces = [rest for rests, _ in cuts for rest in rests]
            left += pieces
        if not taken:
            shared = ", ".join(map(str, self)) or "nothing"
            raise ConfigurationError(f"{text!r} is not shared anyway; shared is {shared}.")
        return GrantSet(left), GrantSet(taken)

    def allows(self, protocol: str, target: int | str) -> tuple[str, int] | None:
        """Where a stream or flow to `target` shall go: a port of this machine, NAME, or NAME:port.  None: denied.

        Takes whatever the peer sent.
        """
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
            if grant.protocol != protocol or (grant.name is None) != (name is None):
                continue
            if name is not None and grant.name is not None and grant.name.lower() != name.lower():
                continue
            if port is None:
                return grant.host, grant.first
            if grant.first <= port <= grant.last:
                return grant.host, port
        return None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


def _grant_from(record: Mapping[str, Any]) -> Grant:
    try:
        protocol, name, host = record["protocol"], record["name"], record["host"]
        first, last = record["first"], record["last"]
    except (KeyError, TypeError):
        raise StateError("A saved grant is incomplete.") from None
    sound = (
        protocol in PROTOCOLS
        and (name is None or (isinstance(name, str) and NAME.fullmatch(name) is not None))
        and isinstance(host, str)
        and (HOST.fullmatch(host) is not None)
        and type(first) is type(last) is int
        and 1 <= first <= last <= MAX_PORT
    )
    if not sound:
        raise StateError("A saved grant makes no sense.")
    return Grant(protocol=protocol, name=name, host=host, first=first, last=last)
