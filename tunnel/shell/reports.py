"""From what the endpoint tells to what a person or a program is told: the machine interface's events, and the exceptions."""

from __future__ import annotations

from tunnel.errors import (
    ConfigurationError,
    InternalError,
    PairingError,
    PeerError,
    ServerUnreachableError,
    TunnelError,
    UnreachableError,
)
from tunnel.node.events import (
    CodeIssued,
    EndpointEvent,
    PeerBack,
    PeeringClosed,
    PeeringEvent,
    PeerPaired,
    Problem,
    ServerReached,
    Troubled,
)
from tunnel.node.flows.expose_code import ExposerPairing
from tunnel.pairing.identity import fingerprint
from tunnel.shell.events import Closed, CodeReady, Event, Paired, PathReport, Trouble
from tunnel.shell.link import Link
from tunnel.transport.connection.events import (
    AllPathsLost,
    CloseCode,
    CloseReason,
    ControlReceived,
    PathChanged,
    PathKind,
    PathLost,
)
from tunnel.units import Instant

__all__ = ["EndpointEvent", "ExposerPairing", "PeerBack", "Troubled", "closed_exception", "is_news", "to_event", "to_exception"]

_NEWS = (AllPathsLost, ControlReceived, PathChanged, PathLost)
_RAISED: dict[Problem, type[TunnelError]] = {
    Problem.WRONG_CODE: PairingError,
    Problem.CODE_EXPIRED: PairingError,
    Problem.CODE_UNANSWERED: PairingError,
    Problem.CODE_UNKNOWN: PairingError,
    Problem.CODE_SPENT: PairingError,
    Problem.SERVER_UNREACHABLE: ServerUnreachableError,
    Problem.SERVER_LOST: ServerUnreachableError,
    Problem.SERVER_REFUSED: ServerUnreachableError,
    Problem.PEER_ABSENT: UnreachableError,
    Problem.PEER_LOST: PairingError,
    Problem.PEER_SILENT: UnreachableError,
    Problem.KEY_CHANGED: PeerError,
    Problem.PATH_POLICY: ConfigurationError,
    Problem.NO_DIRECT: UnreachableError,
    Problem.NO_KEYS: UnreachableError,
    Problem.KEYS_GIVEN_UP: UnreachableError,
    Problem.POST_QUANTUM: PeerError,
    Problem.INTERNAL: InternalError,
    Problem.CLOCK_OFF: ConfigurationError,
    Problem.OTHER_MACHINE: ConfigurationError,
    Problem.TOO_MANY_PEERS: ConfigurationError,
    Problem.STRANGERS: ConfigurationError,
}


def is_news(event: EndpointEvent) -> bool:
    """Whether it may change which link leads to a peer, or what that can be used for: not the many of streams and datagrams."""
    return not isinstance(event, PeeringEvent) or isinstance(event.event, _NEWS)


def to_exception(event: Troubled) -> TunnelError:
    """Return the exception for a final Troubled."""
    return _RAISED[event.problem](event.text)


def closed_exception(link: Link, reason: CloseReason) -> TunnelError:
    """Return the exception for the end of a link."""
    if reason.code == CloseCode.PATH_POLICY:
        return ConfigurationError(reason.text)
    if reason.code == CloseCode.FORGOTTEN:
        return PeerError(f"{link.peer_name} has forgotten this machine: ask there for a new code, for 'ptunnel connect --new'.")
    return UnreachableError(f"The link to {link.peer_name} has ended: {reason.text}.")


def to_event(event: EndpointEvent, now: Instant) -> Event | None:
    """The machine interface's event for it, where there is one.  A final Troubled is raised instead."""
    match event:
        case CodeIssued(code=code, expires_s=expires_s):
            return CodeReady(code=code, expires_s=expires_s)
        case PeerPaired(peer=peer):
            return Paired(peer=peer.name, fingerprint=fingerprint(peer.static))
        case PeeringEvent(peering=peering, event=PathChanged() as path):
            is_final = path.why and not peering.route
            if path.kind is PathKind.DIRECT:
                why = path.why
            else:
                why = peering.by_way(path.why) if is_final else peering.why_relayed(now)
            return PathReport(
                kind=path.kind.value,
                remote=str(path.remote),
                rtt_s=path.rtt,
                mtu=path.mtu,
                why=why,
                peer=peering.peer.name,
            )
        case PeeringClosed(peering=peering, reason=reason):
            forgotten = reason.code == CloseCode.FORGOTTEN and not reason.by_peer  # the text is for the other side
            return Closed(reason="you have forgotten it" if forgotten else reason.text, peer=peering.peer.name)
        case PeerBack(peering=peering):
            return Trouble(code="peer_back", message=f"{peering.peer.name} answers again.")
        case ServerReached(server=server, is_again=True):
            return Trouble(code="server_back", message=f"The server {server.partition(',')[0]} answers again.")
        case Troubled(problem=problem, text=text, is_final=False):
            return Trouble(code=problem.value, message=text)
        case _:
            return None
