"""The network of one command: an interface that no other program sees, for people who cannot or will not give privilege."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tunnel.errors import CommandNotFoundError, CommandNotRunError, ConfigurationError

if TYPE_CHECKING:
    from tunnel.doors.tun.config import InterfaceConfig
    from tunnel.doors.tun.namespace import NamespaceInterface

NEEDS_LINUX: Final = "A network of its own for a command needs Linux: run it there."


class CommandNetwork:
    """The `interface` argument of tunnel.lan.create and join; the command is started in it afterwards."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._interface: NamespaceInterface | None = None

    def require(self) -> None:
        """Before a code or a place in a room is spent on it.

        Raises CommandNotRunError, CommandNotFoundError, and ConfigurationError where this system makes no network for it.
        """
        import shutil

        if sys.platform != "linux":
            raise ConfigurationError(NEEDS_LINUX)
        from tunnel.doors.tun.inside import why_not

        word = self._command[0]
        if shutil.which(word) is None:
            is_there = "/" in word and os.path.exists(word)
            why = os.strerror(errno.EACCES if is_there else errno.ENOENT)
            raise (CommandNotRunError if is_there else CommandNotFoundError)(f"{word} cannot be run: {why}.")
        if (reason := why_not()) is not None:
            raise ConfigurationError(reason)

    async def open(self, config: InterfaceConfig) -> NamespaceInterface:
        """Raises ConfigurationError where namespaces are refused."""
        if sys.platform != "linux":
            raise ConfigurationError(NEEDS_LINUX)
        from tunnel.doors.tun.namespace import open_namespace_interface

        self._interface = await open_namespace_interface(config, self._command)
        return self._interface

    async def start(self) -> None:
        """Once the room is entered.  Raises CommandNotRunError, CommandNotFoundError."""
        assert self._interface is not None
        await self._interface.start_command()

    def send_signal(self, number: int) -> None:
        if self._interface is not None:
            self._interface.send_signal(number)

    async def wait(self) -> int:
        """The command's exit code; 128 and the number for a signal."""
        assert self._interface is not None
        return await self._interface.wait_command()
