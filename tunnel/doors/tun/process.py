"""Our side of the children of this room: starting them, asking the keeper, waiting for their end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.keeper import MAX_MESSAGE
from tunnel.doors.tun.privileges import drop_privileges, privileged_threads
from tunnel.errors import ConfigurationError

COMMAND_TIMEOUT: Final = 20.0  # seconds for an answer; configuring takes half a second, mostly pyroute2's import
GOODBYE_TIMEOUT: Final = 2.0  # seconds for a child to end by itself
ROUNDS: Final = 3  # of asking other threads; a busy one may be missed by the first
THREAD_TIMEOUT: Final = 1.0  # seconds for idle threads to come together
#: What no child is to know, nor the command that it becomes.
SECRETS: Final = ("PTUNNEL_CODE", "PTUNNEL_ACCESS_TOKEN", "PTUNNEL_FLEET", "PTUNNEL_FLEET_KEY")
_PACKAGE_PARENT: Final = str(Path(__file__).resolve().parents[3])
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"


def python_words(module: str, *arguments: str) -> list[str]:
    """The words that run `main` of one of our modules from where this process has it: -P keeps the current folder out."""
    return [sys.executable, "-P", "-c", _BOOT.format(module=module), _PACKAGE_PARENT, *arguments]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ours, non-blocking, and the child's: messages arrive whole."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


async def wait_ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status as subprocess gives it: negative for a signal."""
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    return process.wait()


async def end(process: subprocess.Popen[bytes]) -> None:
    """Let it end by itself for a moment, then kill it; never longer than GOODBYE_TIMEOUT."""
    with trio.move_on_after(GOODBYE_TIMEOUT, shield=True):
        await wait_ended(process)
    if process.poll() is None:
        process.kill()
        process.wait()


def spawn(words: Sequence[str], descriptors: Sequence[int], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child from this very thread: its capabilities are what the child inherits, and the environment without SECRETS.

    Raises ConfigurationError.
    """
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    try:
        return subprocess.Popen(words, pass_fds=tuple(descriptors), env=environment, **options)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ConfigurationError(f"The helper process for the LAN interface could not be started: {why}.") from error


class KeeperClient:
    """Asks the keeper, one command at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = trio.Lock()
        self._number = 0

    async def configure(self, config: InterfaceConfig) -> list[str]:
        return await self._ask("configure", config=config.to_json())

    async def set_mtu(self, mtu: int) -> None:
        await self._ask("mtu", mtu=mtu)

    async def set_names(self, names: dict[str, list[str]]) -> None:
        await self._ask("names", names=names)

    async def _ask(self, do: str, **fields: Any) -> list[str]:
        """The facts of the answer.  Raises ConfigurationError: refused, or nobody answers."""
        async with self._lock:
            self._number += 1
            message = json.dumps({"id": self._number, "do": do, **fields}).encode()
            if len(message) > MAX_MESSAGE:
                raise ConfigurationError("This is more than a LAN interface can be told at once.")
            try:
                with trio.fail_after(COMMAND_TIMEOUT):
                    answer = await self._exchange(message)
            except (OSError, trio.TooSlowError):
                answer = {}
        if not answer:
            raise ConfigurationError("The process that configures the LAN interface has ended: start ptunnel again.")
        if not answer.get("ok"):
            raise ConfigurationError(str(answer.get("error")))
        return [str(fact) for fact in answer["facts"]]

    async def _exchange(self, message: bytes) -> dict[str, Any]:
        while True:
            try:
                self._socket.send(message)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with contextlib.suppress(BlockingIOError):
                text = self._socket.recv(MAX_MESSAGE)
                answer: dict[str, Any] = json.loads(text) if text else {}
                if answer.get("id") in (self._number, None):  # an earlier one belongs to a command that was cancelled
                    return answer

    def quit(self) -> None:
        """Say goodbye without waiting, and close."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"id": 0, "do": "quit"}).encode())
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


async def drop_privileges_everywhere() -> list[int]:
    """drop_privileges in this thread and in trio's idle worker threads; gives the threads that still have a capability.

    Threads of other makers, and workers that are busy all the time, cannot be reached.
    """
    drop_privileges()
    for _ in range(ROUNDS):
        others = privileged_threads()
        if not others:
            break
        # As many at once as there are, none ending before all have begun: so each runs in another thread.
        barrier = threading.Barrier(len(others))

        def drop_with_others(barrier: threading.Barrier = barrier) -> None:
            drop_privileges()
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(THREAD_TIMEOUT)

        limiter = trio.CapacityLimiter(len(others))
        async with trio.open_nursery() as nursery:
            for _ in others:
                nursery.start_soon(partial(trio.to_thread.run_sync, drop_with_others, limiter=limiter))
    return privileged_threads()
