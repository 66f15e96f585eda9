"""Listening sockets that a service manager has opened for us: `sd_listen_fds(3)`, as systemd's .socket units give them.

So a forward may have a port below 1024 without root, and is started by its first connection.  A socket is used for the forward
whose port, or path, it has.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterable, MutableMapping
from typing import Final

from tunnel.ends import UNIX
from tunnel.errors import ConfigurationError
from tunnel.ports.spec import EVERYWHERE, MAX_FORWARDS, Forward

FIRST: Final = 3  # SD_LISTEN_FDS_START
_INET: Final = (socket.AF_INET, socket.AF_INET6)
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "socks": socket.SOCK_STREAM}


class Passed:
    """The passed sockets that are not used yet."""

    def __init__(self, sockets: list[socket.socket] | None = None) -> None:
        self._sockets = [] if sockets is None else sockets
        self._lent: set[socket.socket] = set()

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ, first: int = FIRST) -> Passed:
        """Of this process, once: no child takes them for its own.  Raises ConfigurationError for what is no listening socket."""
        words = [environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
        if words[0] != str(os.getpid()) or not (words[1].isascii() and words[1].isdecimal()):
            return cls()
        sockets: list[socket.socket] = []
        passed = cls(sockets)
        try:
            for number in range(first, first + min(int(words[1]), MAX_FORWARDS)):
                os.set_inheritable(number, False)
                sockets.append(socket.socket(fileno=number))
                sockets[-1].setblocking(False)
                _check(sockets[-1])
        except OSError as error:
            passed.close()
            raise ConfigurationError(f"Descriptor {number} is no socket ({error.strerror}): look at the .socket unit.") from None
        except BaseException:
            passed.close()
            raise
        return passed

    def take(self, forward: Forward) -> list[socket.socket]:
        """Those for this forward; none where nothing was passed for it.  Raises ConfigurationError where they contradict."""
        found = self._found(forward)
        self._sockets = [sock for sock in self._sockets if sock not in found]
        return found

    def _found(self, forward: Forward) -> list[socket.socket]:
        found = [sock for sock in self._sockets if _fits(sock, forward)]
        for sock in found:
            if forward.has_bind and not forward.path and not _is_bound_as_said(sock, forward):
                raise ConfigurationError(
                    f"The .socket unit listens at {_where(sock)}, and the forward says {forward.bind}: write the same in both."
                )
        return found

    def lend(self, forwards: Iterable[Forward]) -> Passed:
        """Those for these forwards once more; they stay open here, for who wants them next.

        Raises ConfigurationError where they contradict.
        """
        found = [sock for forward in forwards for sock in self._found(forward)]
        self._lent.update(found)
        return Passed([sock.dup() for sock in found])

    @property
    def unwanted(self) -> list[str]:
        """Where those listen that have not been lent."""
        return [_where(sock) for sock in self._sockets if sock not in self._lent]

    def require_none_left(self) -> None:
        """Raises ConfigurationError."""
        if self._sockets:
            where = _where(self._sockets[0])
            raise ConfigurationError(
                f"The .socket unit listens at {where}, and no --forward does: add one, or take that line out of the unit."
            )

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()


def _check(sock: socket.socket) -> None:
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigurationError("The .socket unit passes a connection: write Accept=no there.")


def _fits(sock: socket.socket, forward: Forward) -> bool:
    if sock.type != _KINDS[forward.protocol]:
        return False
    if sock.family in _INET:
        return not forward.path and forward.local != 0 and sock.getsockname()[1] == forward.local
    return bool(forward.path) and sock.getsockname() == forward.path


def _is_bound_as_said(sock: socket.socket, forward: Forward) -> bool:
    host = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    if forward.bind == EVERYWHERE:
        return host.is_unspecified
    with contextlib.suppress(ValueError):
        return host == ipaddress.ip_address(forward.bind.partition("%")[0])
    return False


def _where(sock: socket.socket) -> str:
    if sock.family not in _INET:
        return f"{UNIX}{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{f'[{host}]' if ':' in host else host}:{port}{'' if sock.type == socket.SOCK_STREAM else '/udp'}"
