"""The life of a connection as a table, and the one function that applies it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from tunnel.errors import InternalError


class State(Enum):
    """A connection is made when its handshake is done, so it is born established.  RFC 9000 §10."""

    ESTABLISHED = "established"
    CLOSING = "closing"  # we said CLOSE and repeat it to whoever still talks
    DRAINING = "draining"  # the peer said CLOSE; we say nothing more
    CLOSED = "closed"


class Cue(Enum):
    """What can happen to it."""

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
