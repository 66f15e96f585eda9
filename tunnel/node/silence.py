"""What is said when nothing gets through to a peer any more."""

from __future__ import annotations

from typing import Final

from tunnel.node.events import Problem, Troubled

NO_KEYS: Final = (
    "Data of {} gets through and new keys do not: somebody on the way, or the server that relays, drops handshakes. "
    "Nothing is sent under old keys; trying on. Another network or server would help."
)


def no_keys(name: str) -> Troubled:
    """The keypair has come to its end, though the peer was heard until now."""
    return Troubled(problem=Problem.NO_KEYS, text=NO_KEYS.format(name))


def fell_silent(name: str, *, is_initiator: bool) -> Troubled:
    """No path works.  The initiator looks for the peer; the other side can only wait for it."""
    if is_initiator:
        return Troubled(problem=Problem.PEER_LOST, text=f"{name} fell silent: looking for it again.")
    return Troubled(problem=Problem.PEER_SILENT, text=f"{name} fell silent: it is waited for.")
