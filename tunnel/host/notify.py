"""Tell the service manager that started this process how it is, by the datagrams of sd_notify(3), and feed its watchdog.

systemd names a socket in NOTIFY_SOCKET and the patience of its watchdog in WATCHDOG_USEC.  Without them every call does
nothing, so a caller need not ask whether there is a manager.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Final

import trio

from tunnel.units import Seconds

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PATIENCE: Final = Seconds(1.0)  # for a manager whose queue is full; a lost READY would end the service
SIGNS_PER_PATIENCE: Final = 2  # signs of life in the time that the watchdog allows: sd_watchdog_enabled(3) recommends half of it
SHORTEST_SIGN: Final = Seconds(0.1)  # between two signs of life, whatever the watchdog allows
MAX_STATUS: Final = 200  # characters of the line that `systemctl status` shows


class ServiceManager:
    """The manager behind a socket.  `path` as in NOTIFY_SOCKET; None: there is none, or it cannot be reached."""

    def __init__(self, path: str | None = None, watchdog: Seconds | None = None) -> None:
        self._address = _address(path)
        #: Seconds between two signs of life; None: nobody waits for them.
        self.sign_every = None
        if watchdog is not None and self._address is not None:
            self.sign_every = Seconds(max(watchdog / SIGNS_PER_PATIENCE, SHORTEST_SIGN))
        #: What could not be sent, by the name of the error.
        self.drops: Counter[str] = Counter()

    @classmethod
    def take(cls, environment: MutableMapping[str, str], pid: int | None = None) -> ServiceManager:
        """The manager of this process.  Its variables are taken out: a program that we start is not the one that it waits for.

        A watchdog that is meant for another process (WATCHDOG_PID), or that is no number, is none.
        """
        path, patience, owner = (environment.pop(name, None) for name in VARIABLES)
        is_ours = owner is None or owner == str(os.getpid() if pid is None else pid)
        watchdog = None
        if is_ours and patience is not None and patience.isascii() and patience.isdecimal() and int(patience) > 0:
            watchdog = Seconds(int(patience) / 1e6)
        return cls(path, watchdog)

    def __bool__(self) -> bool:
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The service can be used, or its reload is over."""
        self._send("READY=1", _status(status), patience=PATIENCE)

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 if hasattr(time, "CLOCK_MONOTONIC") else 0
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", patience=PATIENCE)

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1", patience=PATIENCE)

    def tell(self, status: str) -> None:
        """One line for people."""
        self._send(_status(status))

    async def keep_alive(self, is_well: Callable[[], bool] = lambda: True) -> None:
        """Give signs of life as long as trio's loop turns and `is_well`; returns at once where nobody waits for them."""
        while self.sign_every is not None:
            if is_well():
                self._send("WATCHDOG=1")
            await trio.sleep(self.sign_every)

    def _send(self, *fields: str, patience: float = 0.0) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
                door.settimeout(patience)  # 0: not at all
                door.connect(
                    self._address
                )  # or a full queue would be waited for in a busy loop: unix(7) has no POLLOUT of others
                door.send("\n".join(field for field in fields if field).encode())
        except OSError as error:  # a manager that has gone is no reason to end
            self.drops[type(error).__name__] += 1


def _address(path: str | None) -> str | None:
    """As socket.sendto takes it.  Of the kinds that systemd has, a path and an abstract name; a virtual machine's is not ours."""
    if path is None or not hasattr(socket, "AF_UNIX") or not path.startswith(("/", "@")) or len(path) < 2:
        return None
    return "\0" + path[1:] if path.startswith("@") else path


def _status(text: str) -> str:
    """One line, without what would begin another field."""
    return f"STATUS={' '.join(text.split())[:MAX_STATUS]}" if text else ""
