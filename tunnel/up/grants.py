"""Grants of a running home's peers: as is remembered of each, as config.toml says, and for as long as somebody asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tunnel.errors import ConfigurationError, StateError
from tunnel.pairing.grants import GrantSet
from tunnel.ports.granting import readable, told
from tunnel.ports.open import Listen, Open, Reach
from tunnel.ports.rate import Limit, PeerLimits
from tunnel.shell.endpoint import KnownPeer
from tunnel.up import edit
from tunnel.up.config import Share, read_wishes

if TYPE_CHECKING:
    from tunnel.ports.public_link import Link
    from tunnel.up.home import Home


def reach(peer: KnownPeer) -> GrantSet:
    """All that it may reach."""
    return readable(peer.grants).union(readable(peer.lent))


def _grants(grants: GrantSet, opening: Open | Reach | Listen) -> bool:
    match opening:
        case Reach():
            return bool(grants.nets(opening.kind, opening.port))
        case Listen():
            return grants.lets_listen(opening.host, opening.port)
        case Open():
            return grants.allows(opening.kind, opening.target) is not None


class Grants:
    """Of one home.  Its callers make one change at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.session: list[Share] = []  # for as long as somebody asks for them
        self.withdrawn: list[tuple[str, str]] = []  # (peer, what): taken back, though the file grants it
        self._limits: dict[tuple[float, tuple[str, ...], tuple[str, ...]], PeerLimits] = {}  # by table of config.toml

    def lent(self, name: str) -> GrantSet:
        """Beside what is remembered of the peer of this name."""
        found = self._home.wishes.lent(name)
        for share in self.session:
            if share.is_for(name):
                found = found.union(share.grants)
        for who, what in self.withdrawn:
            if who == name:
                with contextlib.suppress(ConfigurationError):
                    found = found.without(what)[0]
        return found

    def limit(self, link: Link, opening: Open | Reach | Listen) -> Limit | None:
        """Of the bytes of a stream that the peer opens: the rate of the first table of config.toml that grants it."""
        for share in self._home.wishes.shares:
            if share.is_for(link.peer_name) and _grants(share.grants, opening):
                return None if share.rate is None else self._limits_of(share, share.rate).of(link.fingerprint)
        return None

    def _limits_of(self, share: Share, rate: float) -> PeerLimits:
        """The same as before where the table is."""
        place = (rate, share.to, tuple(map(str, share.grants)))
        if place not in self._limits:
            there = {(each.rate, each.to, tuple(map(str, each.grants))) for each in self._home.wishes.shares}
            self._limits = {known: limits for known, limits in self._limits.items() if known in there}
            self._limits[place] = PeerLimits(rate)
        return self._limits[place]

    def lend(self, share: Share) -> Callable[[], None]:
        """Grant this from now on, for as long as somebody asks for it; returns what ends it.  `look` follows."""
        self.session.append(share)
        for name in share.to:
            self._renew(name, share.grants)
        return partial(self.session.remove, share)

    async def look(self) -> None:
        """Go by what is granted now."""
        with contextlib.suppress(StateError):  # it is done, and is seen as soon as the file can be read
            await self._home.exposure.look()

    async def give(self, peer: str, what: Sequence[str], *, saves: bool) -> dict[str, Any]:
        """See Home.grant."""
        if not what:
            raise ConfigurationError("Say what to grant: a port, as in 'ptunnel grant NAME 22'.")
        home, name = self._home, self._home.peer(peer).name
        parsed = GrantSet.parse(*what)
        if saves:
            await home.rewrite(partial(edit.add_share, what=[*what], to=name))
            home.wishes = read_wishes(home.state.config())
        else:
            await home.exposure.grant([name], *what)
        self._renew(name, parsed)
        await self.look()
        return self._told(name)

    def _renew(self, name: str, grants: GrantSet) -> None:
        """These are granted again, though they were taken back."""
        given = {str(each) for each in grants}
        self.withdrawn = [(who, each) for who, each in self.withdrawn if who != name or each not in given]

    async def take(self, peer: str, what: Sequence[str], *, saves: bool) -> dict[str, Any]:
        """See Home.revoke."""
        home = self._home
        record = await trio.to_thread.run_sync(home.state.peer, peer)
        sets = [readable(record.grants), self.lent(record.name)]
        taken: dict[str, None] = {}
        withdrawn: list[tuple[str, str]] = []
        for text in what or [str(each) for each in sets[0].union(sets[1])]:
            found = GrantSet()
            for number, each in enumerate(sets):
                with contextlib.suppress(ConfigurationError):
                    sets[number], cut = each.without(text)
                    found = found.union(cut)
                    withdrawn += [(record.name, str(one)) for one in cut if number == 1]
            if not found:
                sets[0].union(sets[1]).without(text)  # which says what is granted
            taken.update(dict.fromkeys(map(str, found)))
        if withdrawn and saves:
            await home.rewrite(partial(edit.remove_share, what=[*what], to=record.name))
            home.wishes = read_wishes(home.state.config())
        left = sets[0].to_dicts()
        await trio.to_thread.run_sync(partial(home.state.change_grants, [record.name], lambda _peer: left))
        if not saves:
            self.withdrawn += withdrawn
        await self.look()
        return {**self._told(record.name), "revoked": [*taken], "again": bool(withdrawn) and not saves}

    def _told(self, name: str) -> dict[str, Any]:
        peer = self._home.peer(name)
        return {"peer": peer.name, "grants": [*told(reach(peer))]}
