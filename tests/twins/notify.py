"""A service manager that only listens: what sd_notify(3) brings, in the order in which it came."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from types import TracebackType
from typing import Self

PATIENCE_S = 20.0  # for a process that has yet to start


class Manager:
    """A datagram socket; `variables` are for the environment of the process that it manages."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        self._ends = contextlib.ExitStack()
        # A folder of its own, as the path of a Unix socket is short and that of a test may be long.
        path = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="notify", dir="/tmp")) + "/s"
        self.variables = {"NOTIFY_SOCKET": path}
        if watchdog_s is not None:
            self.variables["WATCHDOG_USEC"] = str(round(watchdog_s * 1e6))
        self._door = self._ends.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._door.bind(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ends.close()

    def next(self, patience_s: float = PATIENCE_S) -> dict[str, str]:
        """The fields of the next datagram; TimeoutError."""
        self._door.settimeout(patience_s)
        return dict(line.split("=", 1) for line in self._door.recv(65_536).decode().split("\n"))

    def until(self, field: str, patience_s: float = PATIENCE_S) -> dict[str, str]:
        """The next one that has this field."""
        while field not in (fields := self.next(patience_s)):
            pass
        return fields

    def waiting(self) -> list[dict[str, str]]:
        """Those that have come already."""
        found = []
        try:
            while True:
                found.append(self.next(0.0))
        except BlockingIOError:
            return found
