"""Remembered peers, and the rules for names: a person's names stay, a newcomer gets a free one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr, replace

from tunnel.errors import ConfigurationError
from tunnel.state.documents import (
    BadContent,
    Document,
    Key,
    Record,
    Time,
    decode_record,
    encode_record,
    require_printable,
)
from tunnel.units import KEY_SIZE, Hex

KIND: Final = "peers"
#: Format of peers.json; a file with a larger one is left alone.  A file is written in the oldest one that can say what is in it.
VERSION: Final = 2
_PLAIN: Final = 1
#: Characters of a name, as in the handshake's Params.
MAX_NAME: Final = 64
#: Remembered peers of one home; keeps peers.json under files.MAX_FILE_SIZE.
MAX_PEERS: Final = 10_000
#: Psks kept of one peer, besides that of the pairing; as many as a handshake names.
MAX_KEPT: Final = 6

#: Machines on which a peer was met; and bytes of each one's number.
MAX_MACHINES: Final = 4
MACHINE_SIZE: Final = 3

_LATER_FIELDS: Final = frozenset(("machines", "kept", "hybrid"))  # left out where there are none: format 1 has not got them


class Kept(Record, frozen=True):
    """A psk that a hybrid step made; `is_shown`: the peer has kept it too."""

    psk: Key
    is_shown: bool = msgspec.field(name="shown")


class Peer(Record, frozen=True, kw_only=True):
    """One remembered peer.  `created` and `last_seen` are Unix times; `server` is the host:port to meet it at.

    `grants` are plain dicts: what the peer may reach here.  `version` is the ptunnel protocol it spoke last.
    `machines` are numbers of those on which it was met, the last one last.
    `kept` are the psks that came after that of the pairing, the newest last.  `is_hybrid`: one of them was shown once.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    static: Key
    psk: Key
    server: str | None = None
    grants: list[dict[str, Any]] = msgspec.field(default_factory=list)
    created: Time = 0.0
    last_seen: Time = 0.0
    version: int = 1
    machines: Annotated[tuple[Hex, ...], Meta(max_length=MAX_MACHINES)] = ()
    kept: Annotated[tuple[Kept, ...], Meta(max_length=MAX_KEPT)] = ()
    is_hybrid: bool = msgspec.field(default=False, name="hybrid")

    def __post_init__(self) -> None:
        force_setattr(self, "machines", tuple(map(Hex, self.machines)))


class _File(msgspec.Struct):
    peers: Annotated[list[Peer], Meta(max_length=MAX_PEERS)]


def encode_peers(peers: Iterable[Peer]) -> Document:
    records = map(encode_record, peers)
    return {"peers": [{name: value for name, value in each.items() if value or name not in _LATER_FIELDS} for each in records]}


def version_for(peers: Iterable[Peer]) -> int:
    """The oldest format that can say it: whoever goes back to an older program is told so, where that matters."""
    return VERSION if any(peer.kept or peer.is_hybrid or peer.machines for peer in peers) else _PLAIN


def decode_peers(content: Document) -> list[Peer]:
    """Raises BadContent."""
    peers = decode_record(content, _File).peers
    for peer in peers:
        require_printable(peer.server)
        if not is_name(peer.name) or any(len(machine) != MACHINE_SIZE for machine in peer.machines):
            raise BadContent("name or machines")
    if len({peer.name.casefold() for peer in peers}) != len(peers) or len({peer.static for peer in peers}) != len(peers):
        raise BadContent("two peers of one name or key")
    return peers


def keep(peers: list[Peer], static: bytes, psk: bytes, *, is_shown: bool) -> tuple[list[Peer], Peer]:
    """Add a psk to those kept of a peer, or note that the peer has shown it: whatever was shown stays, and is enough by itself.

    Where there is no room the oldest that was not shown goes.  Raises LookupError: no such peer, or all were shown.
    """
    peer = next((peer for peer in peers if peer.static == static), None)
    if peer is None:
        raise LookupError("no such peer")
    was_shown = any(each.psk == psk and each.is_shown for each in peer.kept)
    kept = [each for each in peer.kept if each.psk != psk]
    while len(kept) >= MAX_KEPT:
        oldest = next((each for each in kept if not each.is_shown), None)
        if oldest is None:
            raise LookupError("no room")
        kept.remove(oldest)
    kept.append(Kept(psk, is_shown or was_shown))
    saved = replace(peer, kept=tuple(kept), is_hybrid=peer.is_hybrid or is_shown)
    return [saved if each is peer else each for each in peers], saved


# -- names


def is_name(text: str) -> bool:
    """Printable, not empty, not padded, at most MAX_NAME characters."""
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text.strip() == text


def find(peers: Iterable[Peer], name: str) -> Peer | None:
    """By exact name, or else by the only one that differs in case alone (names are unique that way too)."""
    return next((peer for peer in peers if peer.name.casefold() == name.casefold()), None)


def add(peers: list[Peer], newcomer: Peer) -> tuple[list[Peer], Peer]:
    """Remember a peer.  A known key keeps the name and the birthday it has; a taken name gets a number: nas, nas-2, nas-3.

    Raises ConfigurationError.
    """
    if len(newcomer.static) != KEY_SIZE or len(newcomer.psk) != KEY_SIZE or not is_name(newcomer.name):
        raise ConfigurationError(f"{newcomer.name!r} cannot be remembered: its name or its keys have the wrong size.")
    if newcomer.server is not None and not newcomer.server.isprintable():  # a file with that would not be read again
        raise ConfigurationError(f"{newcomer.name!r} cannot be remembered: its server {newcomer.server!r} is none.")
    known = next((peer for peer in peers if peer.static == newcomer.static), None)
    others = [peer for peer in peers if peer is not known]
    if known is not None:
        saved = replace(newcomer, name=known.name, created=known.created)
    else:
        if len(peers) >= MAX_PEERS:
            raise ConfigurationError(f"{MAX_PEERS} peers are remembered: forget some with 'ptunnel peers forget NAME'.")
        saved = replace(newcomer, name=_free_name(others, newcomer.name))
    return [*others, saved], saved


def rename(peers: list[Peer], old: str, new: str) -> tuple[list[Peer], Peer]:
    """Raises ConfigurationError."""
    peer = known(peers, old)
    others = [other for other in peers if other is not peer]
    if not is_name(new):
        raise ConfigurationError(f"{new!r} is not a name: use 1 to {MAX_NAME} printable characters.")
    if find(others, new) is not None:
        raise ConfigurationError(f"Another peer is called {new!r}: rename or forget that one first.")
    saved = replace(peer, name=new)
    return [*others, saved], saved


def unpair(peers: list[Peer], static: bytes, psk: bytes, before: Peer | None) -> tuple[list[Peer], Peer | None]:
    """Restore what was remembered under that key before this psk paired it; a later pairing stays."""
    if not any(peer.static == static and peer.psk == psk for peer in peers):
        return peers, next((peer for peer in peers if peer.static == static), None)
    others = [peer for peer in peers if peer.static != static]
    return [*others, *([before] if before is not None else [])], before


def forget(peers: list[Peer], names: Iterable[str]) -> tuple[list[Peer], list[Peer]]:
    """All of them or none.  Raises ConfigurationError."""
    gone = {id(peer): peer for peer in (known(peers, name) for name in names)}
    return [other for other in peers if id(other) not in gone], list(gone.values())


def change_grants(
    peers: list[Peer], names: Iterable[str], change: Callable[[Peer], list[dict[str, Any]]]
) -> tuple[list[Peer], list[Peer]]:
    """Set the grants of these peers to what `change` gives for each, for all of them or none.  Raises ConfigurationError."""
    changed = {peer.static: replace(peer, grants=change(peer)) for peer in (known(peers, name) for name in names)}
    return [changed.get(peer.static, peer) for peer in peers], list(changed.values())


def known(peers: list[Peer], name: str) -> Peer:
    """Raises ConfigurationError with the names there are."""
    peer = find(peers, name)
    if peer is not None:
        return peer
    names = ", ".join(sorted(peer.name for peer in peers)[:10])
    raise ConfigurationError(
        f"No peer called {name!r} is remembered: " + (f"known are {names}." if names else "there are none yet.")
    )


def _free_name(peers: list[Peer], wanted: str) -> str:
    taken = {peer.name.casefold() for peer in peers}
    name, number = wanted, 1
    while name.casefold() in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: MAX_NAME - len(ending)] + ending
    return name
