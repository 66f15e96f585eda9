"""The life of a connection as a table, the one function that applies it, and the goodbye."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from tunnel.core.timers import earliest
from tunnel.errors import InternalError
from tunnel.transport.connection.events import CloseReason
from tunnel.units import Instant, Seconds

LINGER: Final = Seconds(1.0)  # how long CLOSE is repeated to a peer that still talks
CLOSE_SPACING: Final = Seconds(0.1)  # between two of those repetitions


class State(Enum):
    """A connection is made when its handshake is done, so it is born established.  RFC 9000 §10."""

    ESTABLISHED = "established"
    CLOSING = "closing"  # we said CLOSE and repeat it to whoever still talks
    DRAINING = "draining"  # the peer said CLOSE; we say nothing more
    CLOSED = "closed"


class Cue(Enum):
    """The events that change a connection's state."""

    CLOSE_CALLED = "close called"
    PEER_CLOSED = "peer closed"
    WENT_SILENT = "went silent"
    LINGERED = "lingered"


TRANSITIONS: Final[Mapping[State, Mapping[Cue, State]]] = {
    State.ESTABLISHED: {
        Cue.CLOSE_CALLED: State.CLOSING,
        Cue.PEER_CLOSED: State.DRAINING,
        Cue.WENT_SILENT: State.CLOSED,
    },
    State.CLOSING: {Cue.PEER_CLOSED: State.DRAINING, Cue.LINGERED: State.CLOSED},
    State.DRAINING: {Cue.LINGERED: State.CLOSED},
    State.CLOSED: {},
}


def apply(state: State, cue: Cue) -> State:
    """The state after `cue`.  Raises InternalError if the table has no such arrow."""
    try:
        return TRANSITIONS[state][cue]
    except KeyError:
        raise InternalError(f"a connection that is {state.value} cannot meet the cue {cue.value!r}") from None


class Life:
    """The state, and while it ends: when CLOSE is due, and when all is over."""

    def __init__(self) -> None:
        self.state = State.ESTABLISHED
        self.reason: CloseReason | None = None
        self._over_at: Instant | None = None
        self._close_at: Instant | None = None

    @property
    def is_over(self) -> bool:
        return self.state is not State.ESTABLISHED

    def end(self, now: Instant, cue: Cue, reason: CloseReason) -> None:
        """It was established, and is not any more."""
        self.state = apply(self.state, cue)
        self.reason = reason
        self._over_at = Instant(now + LINGER)
        if self.state is State.CLOSING:
            self._close_at = now

    def on_heard(self, now: Instant) -> None:
        """The peer still talks: it has not heard our CLOSE."""
        if self.state is State.CLOSING:
            self._close_at = earliest(self._close_at, Instant(now + CLOSE_SPACING))

    def on_close(self) -> None:
        """The peer said CLOSE when we had said it already."""
        if self.state is State.CLOSING:
            self.state = apply(self.state, Cue.PEER_CLOSED)
            self._close_at = None

    def takes_close(self, now: Instant) -> bool:
        """Whether a CLOSE is to be sent now, once."""
        if self.state is not State.CLOSING or self._close_at is None or now < self._close_at:
            return False
        self._close_at = None
        return True

    def poll_timeout(self, *, may_send: bool) -> Instant | None:
        return None if self.state is State.CLOSED else earliest(self._over_at, self._close_at if may_send else None)

    def handle_timeout(self, now: Instant) -> None:
        if self._over_at is not None and now >= self._over_at and self.state is not State.CLOSED:
            self.state = apply(self.state, Cue.LINGERED)
