"""The ends of forwards: a port or a SOCKS door here, or a port at which the peer listens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunnel.ports.passed import Passed
from tunnel.ports.rate import Limit
from tunnel.ports.remote import Remote
from tunnel.ports.serve import Listeners
from tunnel.up.config import Wish

if TYPE_CHECKING:
    import trio


class Door:
    """The local end of a forward, bound for as long as it is wanted; of one for which the peer listens, nothing."""

    def __init__(self, wish: Wish, passed: Passed | None = None, limit: Limit | None = None) -> None:
        """`limit`: of the bytes, which others may have too.  Raises ConfigurationError: the port is taken."""
        self.wish = wish
        self.listeners = Listeners(wish.forwards, passed)
        self.remotes = wish.remotes
        self.there: dict[Remote, None] = {}  # of these, where the peer listens now
        self.limit = limit
        self.scope: trio.CancelScope | None = None  # while a link serves it

    def told(self) -> list[dict[str, Any]]:
        """As the event `forward` has each of its ports."""
        return [
            {"bind": each.bind, "target": each.target, "binds": list(each.binds), "peer": self.wish.peer}
            for each in self.listeners.ready
        ]

    def told_remotes(self) -> list[dict[str, Any]]:
        """As the event `remote` has each."""
        return [{"bind": each.bind, "target": each.target, "peer": self.wish.peer} for each in self.remotes]

    def heirs(self) -> Passed:
        """The same sockets once more, for a door that takes the place of this one."""
        return Passed([sock.dup() for sock in self.listeners.sockets])

    def close(self) -> None:
        """End what is open through it, and listen no more."""
        if self.scope is not None:
            self.scope.cancel()
        self.listeners.close()


class Opener:
    """Opens doors, with what several of them share: sockets of the service manager, and the limits of tables of [[forward]]."""

    def __init__(self, passed: Passed | None = None) -> None:
        self._passed = passed or Passed()
        self._limits: dict[tuple[str, float, int], Limit] = {}

    def open(self, wish: Wish, gone: Iterable[Door] = ()) -> Door:
        """With the sockets of one of those that end, where that listens at the same place.  Raises ConfigurationError."""
        mine = _places(wish)
        is_fixed = bool(mine) and all(port or path for _bind, port, path, _protocol in mine)  # no place that is drawn anew
        heirs = next((door.heirs() for door in gone if is_fixed and mine == _places(door.wish)), None)
        return Door(wish, self._passed.lend(wish.forwards) if heirs is None else heirs, self._limit(wish))

    def _limit(self, wish: Wish) -> Limit | None:
        if wish.rate is None:
            return None
        if _limited(wish) not in self._limits:
            self._limits[_limited(wish)] = Limit(wish.rate)
        return self._limits[_limited(wish)]

    def keep(self, wishes: Iterable[Wish]) -> None:
        """Nothing else than these is wanted any more."""
        wanted = set(map(_limited, wishes))
        self._limits = {place: limit for place, limit in self._limits.items() if place in wanted}

    @property
    def unwanted(self) -> list[str]:
        """Sentences about sockets of the service manager that no forward has wanted so far."""
        return [
            f"The .socket unit listens at {where}, and no forward does: what connects there waits."
            for where in self._passed.unwanted
        ]

    def close(self) -> None:
        self._passed.close()


def _limited(wish: Wish) -> tuple[str, float, int]:
    """All of one table have the same."""
    return wish.peer.casefold(), wish.rate or 0.0, wish.table


def _places(wish: Wish) -> list[tuple[str, int, str, str]]:
    return [(each.bind, each.local, each.path, each.protocol) for each in wish.forwards]


def added(door: Door, *, was_there: bool) -> dict[str, Any]:
    """As Home.add_forward returns it."""
    found: dict[str, Any] = {"peer": door.wish.peer, "spec": door.wish.text, "was_there": was_there}
    return {**found, "forwards": door.told(), "remotes": door.told_remotes()}
