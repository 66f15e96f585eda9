"""Grants of remembered peers: given, taken back, and told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tunnel.errors import ConfigurationError, StateError, command_word
from tunnel.pairing.grants import GrantSet
from tunnel.state.home import Home
from tunnel.state.peers import Peer


class Granted(NamedTuple):
    """All that `peer` may reach here now."""

    peer: str
    grants: tuple[str, ...]


class Revoked(NamedTuple):
    """The grants taken from `peer`, and those that it still has."""

    peer: str
    revoked: tuple[str, ...]
    grants: tuple[str, ...]


def told(grants: GrantSet) -> tuple[str, ...]:
    """As people read them: `tcp/22`."""
    return tuple(map(str, grants))


def readable(records: Iterable[Mapping[str, object]]) -> GrantSet:
    """Return the readable records as grants; an unreadable one grants nothing, and does not keep others from being revoked."""
    try:
        return GrantSet.from_dicts(records)
    except StateError:
        return GrantSet()


def grant(home: Home, names: Iterable[str], grants: GrantSet, *, only: bool = False) -> list[Granted]:
    """Give these peers more to reach, or with `only` this and nothing else; all of them or none.

    Raises ConfigurationError for an unknown name, StateError.
    """

    def change(peer: Peer) -> list[dict[str, object]]:
        before = GrantSet() if only else GrantSet.from_dicts(peer.grants)
        return before.union(grants).to_dicts()

    return [Granted(peer.name, told(GrantSet.from_dicts(peer.grants))) for peer in home.change_grants(names, change)]


def revoke(peer: str, *what: str | int, home: Path | str | None = None) -> Revoked:
    """Take back what `peer` may reach here: `what` ("22", "53/udp", "5000-5010", "nas"), or everything.

    Whatever process of this home serves the peer ends its streams and flows of that within a second; others are not touched.
    Raises ConfigurationError for an unknown peer and for what is not shared with it, StateError.  Nothing has changed then.
    """
    taken: list[str] = []

    def change(record: Peer) -> list[dict[str, object]]:
        taken.clear()  # it is tried before it is done
        if not what:
            taken.extend(told(readable(record.grants)))
            return []
        left = GrantSet.from_dicts(record.grants)
        for text in what:
            try:
                left, cut = left.without(str(text))
            except ConfigurationError as error:
                raise ConfigurationError(f"{record.name}: {error}") from None
            taken.extend(told(cut))
        return left.to_dicts()

    [after] = Home(home).change_grants((peer,), change)
    return Revoked(after.name, tuple(taken), told(GrantSet.from_dicts(after.grants)))


def require_something_to_share(peers: Iterable[Peer]) -> None:
    """Serving peers that may reach nothing is a mistake.  Raises ConfigurationError with what to do instead."""
    peers = list(peers)
    if not peers:
        raise ConfigurationError("Say what to expose, for example 'ptunnel expose 22': no peer is remembered yet.")
    if any(peer.grants for peer in peers):
        return
    names = ", ".join(peer.name for peer in peers[:10])
    raise ConfigurationError(
        f"You share nothing with {names}. To share: 'ptunnel expose PORT --to {command_word(peers[0].name)}'. "
        f"To reach {'it' if len(peers) == 1 else 'one of them'}: "
        f"'ptunnel connect {command_word(peers[0].name)} --forward PORT'."
    )
