"""Sentences about a peer that is not reached, or not directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.nat.state import AgentState
from tunnel.node.events import Problem, Troubled
from tunnel.transport.connection.paths import STILL_LOOKED_FOR

if TYPE_CHECKING:
    from tunnel.node.punching import Puncher

OVER_ROUTE: Final = "UDP to the server is blocked in this network, so everything goes over {}"

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


def why_relayed(policy: str, puncher: Puncher | None, route: str, has_lost_puncher: bool) -> str:
    """Why the path leads through the server, as far as that is known."""
    if policy == "relay":
        return "the path was set to relay"
    if route:
        return OVER_ROUTE.format(route)
    if has_lost_puncher:
        return "a fault in ptunnel ended the search for a direct path"
    is_looking = puncher is not None and puncher.agent.state in (AgentState.IDLE, AgentState.CHECKING)
    if puncher is None or (is_looking and not puncher.agent.is_hopeless):
        return STILL_LOOKED_FOR
    return puncher.why_relayed
