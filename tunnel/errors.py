"""Everything ptunnel raises on purpose, sorted by whose fault it is.

The text of each is one sentence for a person that says what to do next; the command line prints it and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+")


def command_word(text: str) -> str:
    """`text` as one word of a command that a sentence tells a person to type."""
    return text if _PLAIN_WORD.fullmatch(text) else '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'


class TunnelError(Exception):
    """Root of everything ptunnel raises on purpose."""


class ConfigurationError(TunnelError):
    """You asked for something impossible; the text says what to change."""


class CommandNotRunError(ConfigurationError):
    """The command of `exec` is there and cannot be run; `code` is what a shell gives then."""

    code = 126


class CommandNotFoundError(CommandNotRunError):
    """There is no such command."""

    code = 127


class StateError(ConfigurationError):
    """PTUNNEL_HOME cannot be read, written or understood; nothing in it was changed."""


class AlreadyRunningError(ConfigurationError):
    """Another process of the same PTUNNEL_HOME already does this."""


class UnreachableError(TunnelError):
    """No path to the peer was found, or the last one died."""


class ServerUnreachableError(UnreachableError):
    """The rendezvous server does not answer, or what answers is no ptunnel server."""


class OfflineError(ServerUnreachableError):
    """This computer has no network, or finds nobody who knows names: both may come by themselves."""


class UntrustedServerError(ServerUnreachableError):
    """The server shows a TLS certificate that no authority vouches for, or another one than is pinned."""


class PairingError(TunnelError):
    """The code was wrong, spent, expired or never allocated: get a fresh one."""


class RefusedError(UnreachableError):
    """The peer lets us, but nothing listens there, or that machine does not answer it."""


class PermissionDeniedError(TunnelError):
    """The peer does not let us reach what we asked for."""


class StreamLimitError(TunnelError):
    """The peer allows no further streams right now; wait for one to end."""


class PeerError(TunnelError):
    """The peer, once authenticated, broke the protocol."""


class MalformedPacket(TunnelError):
    """Bytes that do not parse: all a decoder may raise; becomes a drop or a PeerError."""


class InternalError(TunnelError):
    """A bug in ptunnel; please report it with the trace."""


#: The first row that fits counts: exception, `code` of its JSON error and on the control socket.
CODES: Final[tuple[tuple[type[TunnelError], str], ...]] = (
    (StateError, "state_unusable"),
    (AlreadyRunningError, "already_running"),
    (ConfigurationError, "usage"),
    (PairingError, "pairing_failed"),
    (PermissionDeniedError, "denied"),
    (ServerUnreachableError, "server_unreachable"),
    (UnreachableError, "peer_unreachable"),
    (PeerError, "peer_unreachable"),
    (TunnelError, "internal"),
)


def code_of(error: TunnelError) -> str:
    """By which a program tells what kind of trouble it is."""
    return next(code for kind, code in CODES if isinstance(error, kind))


def error_of(code: str, text: str) -> TunnelError:
    """The exception for an error that another process of ours has told."""
    return next((kind for kind, each in CODES if each == code), TunnelError)(text)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group and of those in it; of an error that is no group, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
