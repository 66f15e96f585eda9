"""The part of a connection that its owner needs for paths: to try, choose and drop them, and to ask about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.transport.connection.events import PathKind, PathView
from tunnel.transport.connection.shared import Shared
from tunnel.transport.connection.switching import Switching
from tunnel.units import Instant, PathKey, Seconds, SocketId

MAX_HANDSHAKE_PATHS: Final = 3  # that a handshake for new keys may go over


class PathVerbs:
    """A part of Connection."""

    _shared: Shared
    _switching: Switching
    _touched: Callable[[], None]

    @property
    def current_path(self) -> PathView:
        path = self._shared.paths.current
        rtt = path.recovery.rtt
        newest, at, why = rtt.newest_rtt, rtt.newest_at, self._shared.paths.why
        return PathView(path.key, path.kind, rtt.smoothed_rtt, rtt.min_rtt, newest, at, path.mtu, why)

    @property
    def direct_path(self) -> PathKey | None:
        """The current path where it is direct."""
        path = self._shared.paths.current
        return path.key if path.kind is PathKind.DIRECT and path.validated else None

    def is_path(self, key: PathKey) -> bool:
        """Whether this is a path that works."""
        path = self._shared.paths.known.get(key)
        return path is not None and path.validated

    @property
    def has_path(self) -> bool:
        """Some path has not failed: see AllPathsLost."""
        return any(path.validated for path in self._shared.paths.known.values())

    @property
    def is_sound(self) -> bool:
        """The current path works, as far as we know, and is not being asked whether it does."""
        path = self._shared.paths.current
        return path.validated and path.in_doubt_since is None

    @property
    def paths(self) -> list[PathKey]:
        """The keys of all validated paths, the current one first."""
        paths = self._shared.paths
        rest = [path.key for path in paths.known.values() if path.validated and path is not paths.current]
        return [paths.current.key, *rest]

    @property
    def handshake_paths(self) -> list[PathKey]:
        """Where a handshake for new keys may be answered, the likeliest first."""
        paths = self._shared.paths
        rest = [path for path in paths.known.values() if path is not paths.current and paths.is_allowed(path)]
        rest.sort(key=lambda path: (not path.validated, -path.last_heard))
        return [paths.current.key, *(path.key for path in rest)][:MAX_HANDSHAKE_PATHS]

    @property
    def channels(self) -> set[bytes]:
        """The relay channels of all paths, whether they work just now or not."""
        return {key.prefix for key in self._shared.paths.known if key.prefix}

    @property
    def relay_paths(self) -> dict[PathKey, bool]:
        """All that lead through a server, and whether each works and is not said to end."""
        relayed = (path for path in self._shared.paths.known.values() if path.kind is PathKind.RELAY)
        return {path.key: path.validated and not path.is_replaced for path in relayed}

    @property
    def used_sockets(self) -> set[SocketId]:
        """Those of the paths in use, and of all that the peer has lately answered on."""
        paths = self._shared.paths
        used = {path.key.socket_id for path in paths.known.values() if path.validated}
        return used | {paths.current.key.socket_id, paths.answering.key.socket_id}

    def hold(self) -> None:
        """Send the control stream and what paths need, and nothing else, until `release`."""
        self._touched()
        self._shared.paths.is_held = True

    def release(self, now: Instant) -> None:
        """Send everything again; a PathChanged says so."""
        self._touched()
        self._shared.paths.is_held = False
        self._switching.announce_again()
        self._switching.choose(now)

    def set_policy(self, now: Instant, policy: str) -> None:
        """`auto`, `direct` or `relay`: which paths may carry streams."""
        self._touched()
        self._shared.paths.policy = policy
        self._switching.choose(now, f"--path {policy}")

    def challenge(self, now: Instant, key: PathKey, kind: PathKind, ttl: int | None = None) -> None:
        """Send one PATH_CHALLENGE there; PathValidated follows if it is answered."""
        self._touched()
        self._shared.paths.challenge(now, key, kind, ttl)

    def add_relay(self, now: Instant, key: PathKey, *, instead_of: PathKey | None = None) -> None:
        """A relay channel to the same peer: validate it and keep it in reserve.

        `instead_of` is the path that it replaces, which is about to stop working: it is left as soon as the new one answers.
        """
        self._touched()
        paths = self._shared.paths
        if instead_of is None:
            paths.challenge(now, key, PathKind.RELAY)
            return
        replaced = paths.known.get(instead_of)
        if replaced is not None:
            replaced.is_replaced = True
        paths.expect(now, key, PathKind.RELAY)

    def expect_relay(self, now: Instant, key: PathKey) -> None:
        """The same for one that stands beside those that work, or that may work again: it counts from when it answers."""
        self._touched()
        path = self._shared.paths.known.get(key)
        if path is not None and path.validated:
            path.is_replaced = path.is_left = False
            path.verify(now)
        else:
            self._shared.paths.expect(now, key, PathKind.RELAY)

    def leave_path(self, now: Instant, key: PathKey) -> None:
        """The path is about to stop working, as its server says: use another one from now on, if there is one."""
        self._touched()
        path = self._shared.paths.known.get(key)
        if path is not None:
            path.is_replaced = path.is_left = True
            self._switching.choose(now)

    def knows_path(self, key: PathKey) -> bool:
        """Whether this has been a path, working or not."""
        return key in self._shared.paths.known

    def migrate(self, now: Instant, key: PathKey, kind: PathKind) -> None:
        """A handshake has just run over `key`, which proves the path: use it if the current one is in doubt or gone."""
        self._touched()
        self._shared.paths.adopt(now, key, kind)
        self._switching.choose(now)

    def drop_path(self, now: Instant, key: PathKey) -> None:
        """The path is gone for certain (its channel was closed, its socket removed)."""
        self._touched()
        path = self._shared.paths.known.get(key)
        if path is not None:
            self._switching.drop(now, path)

    @property
    def keepalive(self) -> Seconds:
        """How long direct paths may be silent, as measured so far."""
        return self._shared.paths.keepalive.interval

    def remember_keepalive(self, now: Instant, interval: Seconds) -> None:
        """Begin with what `keepalive` was the last time, if it is shorter than the default."""
        self._touched()
        self._shared.paths.keepalive.remember(now, interval)

    def verify_path(self, now: Instant, key: PathKey) -> None:
        """Ask on that path, if it is known, whether it works; also on one that was given up."""
        self._touched()
        path = self._shared.paths.known.get(key)
        if path is not None:
            path.verify(now)

    def verify_paths(self, now: Instant) -> None:
        """Something happened to the network or the clock: let every path prove itself at once."""
        self._touched()
        for path in self._shared.paths.known.values():
            path.verify(now)
