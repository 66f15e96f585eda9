"""Why a connection or a flow came to nothing, in a sentence for each of the two persons."""

from __future__ import annotations

import errno
import socket
from typing import Final

from tunnel.ends import is_path, path_of
from tunnel.errors import PermissionDeniedError, RefusedError, TunnelError, UnreachableError
from tunnel.ports.counters import Notices
from tunnel.ports.names import MisledError
from tunnel.ports.nets import OutsideError
from tunnel.ports.unix import say_of
from tunnel.shell.stream import StreamCode

REFUSALS: Final = {
    StreamCode.REFUSED: "nothing listens there",
    StreamCode.DENIED: "that is not shared with you",
    StreamCode.UNREACHABLE: "that machine cannot be reached from there",
    StreamCode.TIMED_OUT: "that machine does not answer there",
    StreamCode.RESET: "the program there hung up at once",
    StreamCode.LOOP: "the forward leads to itself: nothing else listens on that port, and both ends are on this machine",
}


def describe_refusal(peer: str, protocol: str, target: int | str, code: int) -> str:
    otherwise = f"it could not serve it (code {code})"
    if code == StreamCode.INTERNAL and is_path(str(target)):
        otherwise = "it could not serve it, or is an older ptunnel, without Unix sockets"
    return f"{peer} refused {protocol}/{target}: {REFUSALS.get(code, otherwise)}."


def refusal_error(peer: str, protocol: str, target: int | str, code: int) -> TunnelError:
    """The same as an exception: not shared, nothing there, or the link has ended."""
    if code == StreamCode.CANCELLED:
        return UnreachableError(f"The link to {peer} ended before {protocol}/{target} was reached.")
    text = describe_refusal(peer, protocol, target, code)
    return PermissionDeniedError(text) if code == StreamCode.DENIED else RefusedError(text)


def say_unserved(notices: Notices, asked: str, address: tuple[str, int], error: OSError) -> None:
    """Tell the person who exposes, who alone can help."""
    if isinstance(error, OutsideError):
        notices.say(f"outside {address}", f"{asked}, which is in no network that you share with them.")
        return
    if is_path(address[0]):
        if text := say_of(path_of(address[0]), error):
            notices.say(f"unserved {address} {error.errno}", f"{asked}: {text}")
        return
    where = "here" if address[0] == "localhost" else f"at {address[0]}"
    match error.errno:
        case socket.EAI_AGAIN if isinstance(error, socket.gaierror):
            text = f"{asked}: nobody tells where the name {address[0]} leads, as no name server (DNS) answers."
        case _ if isinstance(error, socket.gaierror):
            text = f"{asked}: the name {address[0]} is unknown here."
        case errno.ECONNREFUSED:
            text = f"{asked}: nothing listens on port {address[1]} {where}."
        case errno.EADDRNOTAVAIL:
            text = f"{asked}: this machine has no free port left for one more connection. Wait, or close some."
        case errno.EHOSTUNREACH | errno.ENETUNREACH | errno.ETIMEDOUT if not isinstance(error, MisledError):
            text = f"{asked}: {address[0]} does not answer."
        case errno.EPERM | errno.EACCES:
            text = f"{asked}: a rule of this machine, as of its firewall, forbids what goes to {address[0]}."
        case _:
            return
    notices.say(f"unserved {address} {error.errno}", text)
