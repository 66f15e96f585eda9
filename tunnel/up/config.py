"""The tables of config.toml that `ptunnel up` goes by: [[expose]], [[forward]] and [[room]]."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from tunnel.ends import read_rate
from tunnel.errors import ConfigurationError
from tunnel.pairing.grants import Grant, GrantSet
from tunnel.ports.remote import Remote, parse_remotes
from tunnel.ports.spec import Forward, parse_door, parse_forward
from tunnel.settings import TABLES_IN_FILE
from tunnel.state.config_file import ConfigFile

EVERYBODY: Final = "*"  # of `to`: every remembered peer
SOCKS: Final = "socks:"  # before the port of a SOCKS door
REMOTE: Final = "remote:"  # before what the peer is to listen at
#: The keys of [[forward]] that say what is forwarded, by how each of their texts begins elsewhere.
KEYS: Final = {"": "listen", SOCKS: "socks", REMOTE: "remote"}
MAX_WISHES: Final = 1_024  # forwards of one file, and peers in one `to`: as many ports as one command may forward

T = TypeVar("T")


class _Expose(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    what: list[str]
    to: list[str]
    rate: str | None = None


class _Forward(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    peer: str
    listen: list[str] = []
    socks: list[str] = []
    remote: list[str] = []
    rate: str | None = None


class _Room(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    interface: bool = True
    relay: bool = False


def named(text: str) -> tuple[str, str]:
    """The key of [[forward]] under which a forward stands that is written so elsewhere, and what stands there."""
    for prefix in (SOCKS, REMOTE):
        if text.startswith(prefix):
            return KEYS[prefix], text.removeprefix(prefix).strip()
    return KEYS[""], text


@dataclass(frozen=True, slots=True)
class Wish:
    """A forward that is wanted: `text` as it was written, and where; `place` is empty for one that came while running.

    `socks:[BIND:]PORT` is a SOCKS door, `remote:SPEC` has the peer listen.
    """

    peer: str
    text: str
    rate: float | None = None  # bytes per second, of all of this table together
    place: str = ""
    table: int = -1  # of the file

    @property
    def forwards(self) -> list[Forward]:
        """The ports and paths here.  Raises ConfigurationError."""
        match named(self.text):
            case "listen", text:
                return parse_forward(text)
            case "socks", text:
                return parse_door(text)
            case _:
                return []

    @property
    def remotes(self) -> list[Remote]:
        """The ports there.  Raises ConfigurationError."""
        key, text = named(self.text)
        return parse_remotes([text]) if key == "remote" else []

    @property
    def key(self) -> tuple[str, tuple[Forward | Remote, ...], float | None]:
        """The same for the same forward, however it was written."""
        return self.peer.casefold(), (*self.forwards, *self.remotes), self.rate


@dataclass(frozen=True, slots=True)
class Share:
    """Grants for peers, or for everybody."""

    grants: GrantSet
    to: tuple[str, ...]
    place: str = ""
    rate: float | None = None  # bytes per second, of what each peer reaches by it

    def is_for(self, name: str) -> bool:
        return EVERYBODY in self.to or name.casefold() in {each.casefold() for each in self.to}


class RoomWish(NamedTuple):
    """A room that is to be open."""

    name: str
    has_interface: bool = True
    relays: bool = False


@dataclass(frozen=True, slots=True)
class Wishes:
    """All of a file."""

    forwards: tuple[Wish, ...] = ()
    shares: tuple[Share, ...] = ()
    rooms: tuple[RoomWish, ...] = ()

    @property
    def interfaces(self) -> int:
        """How many of its rooms want one."""
        return sum(room.has_interface for room in self.rooms)

    def lent(self, name: str) -> GrantSet:
        """The grants of the peer of this name by the file."""
        found = GrantSet()
        for share in self.shares:
            if share.is_for(name):
                found = found.union(share.grants)
        return found

    def names(self) -> dict[str, str]:
        """The peers that are named, and where."""
        named = {wish.peer: wish.place for wish in self.forwards}
        return named | {name: share.place for share in self.shares for name in share.to if name != EVERYBODY}


def read_wishes(config: ConfigFile) -> Wishes:
    """Raises ConfigurationError that names the file, the line and the key."""
    exposes, forwards, rooms = (_tables(config, name, kind) for name, kind in _KINDS.items())
    wishes: list[Wish] = []
    for index, table in enumerate(forwards):
        rate = _rate(config, "forward", index, table)
        _require(config.place_in("forward", index, "peer"), "peer", [table.peer])
        if not (table.listen or table.socks or table.remote):
            raise ConfigurationError(f"{config.place_in('forward', index)} [[forward]] needs listen, socks or remote.")
        for prefix, key in KEYS.items():
            place = config.place_in("forward", index, key)
            texts = getattr(table, key)
            if texts:
                _require(place, key, texts)
            for text in texts:
                wish = Wish(table.peer, prefix + text, rate, place, index)
                _at(place, key, lambda wish: wish.key, wish)
                wishes.append(wish)
    require_room(wishes)
    shares: list[Share] = []
    for index, table in enumerate(exposes):
        place = config.place_in("expose", index, "what")
        _require(place, "what", table.what)
        _require(config.place_in("expose", index, "to"), "to", table.to)
        grants = _at(place, "what", lambda what: GrantSet.parse(*what), table.what)
        shares.append(Share(grants, tuple(table.to), place, _rate(config, "expose", index, table)))
    for index, table in enumerate(rooms):
        _require(config.place_in("room", index, "name"), "name", [table.name])
    return Wishes(
        tuple(wishes),
        tuple(shares),
        tuple({table.name: RoomWish(table.name, table.interface, table.relay) for table in rooms}.values()),
    )


def _rate(config: ConfigFile, name: str, index: int, table: Any) -> float | None:
    return None if table.rate is None else _at(config.place_in(name, index, "rate"), "rate", read_rate, table.rate)


def require_room(wishes: Iterable[Wish]) -> None:
    """No two of them listen at one place.  Raises ConfigurationError."""
    taken: dict[tuple[str, int, str], Wish] = {}
    there: dict[tuple[str, str], Wish] = {}
    for wish in wishes:
        for remote in wish.remotes:
            other = there.setdefault((wish.peer.casefold(), remote.bind), wish)
            if other is not wish:
                raise ConfigurationError(f"{_prefix(wish)}{wish.peer} is to listen at {remote.bind} already, by {other.text!r}.")
        for forward in wish.forwards:
            if not (forward.local or forward.path):
                continue
            protocol = "tcp" if forward.is_door else forward.protocol
            place = (forward.path or forward.bind, forward.local, protocol)
            other = taken.setdefault(place, wish)
            if other is not wish:
                where = forward.path or f"{protocol} port {forward.local}"
                whose = f"{other.peer}'s {other.text}"
                raise ConfigurationError(f"{_prefix(wish)}{wish.text!r} wants {where}, which {whose} has already.")
    if len(taken) + len(there) > MAX_WISHES:
        raise ConfigurationError(f"More than {MAX_WISHES} ports are forwarded: leave some out.")


def _prefix(wish: Wish) -> str:
    return f"{wish.place} {named(wish.text)[0]}: " if wish.place else ""


def _require(place: str, key: str, texts: list[str]) -> None:
    if not texts or len(texts) > MAX_WISHES or not all(text.strip() and text.isprintable() for text in texts):
        raise ConfigurationError(f"{place} {key} needs 1 to {MAX_WISHES} texts, none of them empty.")


def _at(place: str, key: str, read: Callable[[Any], T], value: Any) -> T:
    try:
        return read(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place} {key}: {error}") from None


_LISTS: Final = ("what", "to", *KEYS.values())
_FLAGS: Final = ("interface", "relay")
_KINDS: Final[Mapping[str, type[Any]]] = dict(zip(TABLES_IN_FILE, (_Expose, _Forward, _Room), strict=True))
_WHERE = re.compile(r"(?P<what>.*?)(?:\s-\sat\s`\$\[(?P<index>\d+)\](?:\.(?P<key>\w+))?.*`)?\Z", re.DOTALL)


def _tables(config: ConfigFile, name: str, kind: type[Any]) -> list[Any]:
    tables = config.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise ConfigurationError(f"{config.place(name)} {name} is a list of tables: write [[{name}]].")
    tables = [{key: [value] if _is_single(kind, key, value) else value for key, value in table.items()} for table in tables]
    try:
        found: list[Any] = msgspec.convert(tables, list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(config, name, kind, str(error))) from None
    return found


def _is_single(kind: type[Any], key: str, value: Any) -> bool:
    """A text where a list of texts is wanted, of one."""
    return isinstance(value, str) and key in _LISTS and key in kind.__struct_fields__


def _explain(config: ConfigFile, name: str, kind: type[Any], text: str) -> str:
    match = _WHERE.match(text)
    assert match is not None
    index = int(match["index"] or 0)
    named = re.search(r"field\s`(\w+)`", match["what"])
    if "missing" in match["what"] and named:
        return f"{config.place_in(name, index)} [[{name}]] needs {named[1]}: the documentation of 'ptunnel up' shows one."
    if named:
        known = ", ".join(kind.__struct_fields__)
        return f"{config.place_in(name, index, named[1])} unknown key {named[1]!r} in [[{name}]]: known are {known}."
    key = match["key"] or ""
    shape = "a list of texts" if key in _LISTS else "true or false" if key in _FLAGS else "text in quotes"
    return f"{config.place_in(name, index, key)} {key} of [[{name}]] must be {shape}."


def grants_of(grants: Iterable[Grant]) -> tuple[dict[str, Any], ...]:
    """As a peer's record has them."""
    return tuple(each.to_dict() for each in grants)
