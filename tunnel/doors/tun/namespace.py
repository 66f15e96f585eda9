"""A LAN interface that one command alone uses: `ptunnel exec`, which needs no privilege.

The command runs in its own user, network and mount namespace, with its own user and terminal.  It is kept off the host's network
and cannot reconfigure the interface; files, processes and Unix sockets are the host's, so it is no sandbox for hostile programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import trio

from tunnel.doors.tun import process
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.device import TapDevice, from_descriptor
from tunnel.doors.tun.inside import GO, MAX_MESSAGE, NOT_FOUND
from tunnel.errors import CommandNotFoundError, CommandNotRunError, ConfigurationError
from tunnel.faults import Faults

#: There is no default route, which is what these follow elsewhere: without a route of their own they would be unreachable.
#: Everything else outside the LAN shall be just that, at once.
EVERYBODY: Final = ("224.0.0.0/4", "255.255.255.255/32")


class NamespaceInterface:
    """The TAP of a command's own network.  Made by open_namespace_interface; close it in the end.

    Order of use: carry frames, start_command, wait_command, close.  Closing takes the interface away from a command that still
    runs; it does not end the command.
    """

    def __init__(
        self, device: TapDevice, child: subprocess.Popen[bytes], control: socket.socket, client: process.KeeperClient
    ) -> None:
        self.device = device
        self.facts: list[str] = []
        self._child = child
        self._control = control
        self._client = client

    @property
    def name(self) -> str:
        return self.device.name

    async def set_mtu(self, mtu: int) -> None:
        """Bytes, between MIN_MTU and MAX_MTU.  Raises ConfigurationError."""
        await self._client.set_mtu(mtu)

    async def renumber(self, config: InterfaceConfig) -> list[str]:
        """Replace addresses and routes; the name stays what it is.  Gives facts.  Raises ConfigurationError."""
        routes = tuple(dict.fromkeys((*config.routes, *EVERYBODY)))
        return await self._client.configure(dataclasses.replace(config, name=self.device.name, routes=routes))

    async def set_names(self, names: Mapping[str, Iterable[str]]) -> None:
        """Let NAME.ptunnel stand for the addresses in the command's own hosts file.  Raises ConfigurationError."""
        await self._client.set_names({name: list(addresses) for name, addresses in names.items()})

    async def run_discovery(self, send: Callable[[bytes], None], faults: Faults, warn: Callable[[str], None]) -> None:
        """Nothing to do: whatever the command announces leaves by the one interface there is.  Until cancelled."""
        await trio.sleep_forever()

    async def why_shut(self) -> str | None:
        """No firewall is in a network that was made a moment ago."""
        return None

    async def start_command(self) -> None:
        """Let the command run, in our terminal and process group: Ctrl-C reaches it by itself, and us as well.

        Raises CommandNotRunError, CommandNotFoundError.
        """
        with contextlib.suppress(OSError):
            self._control.send(GO)
        answer = await _receive(self._control)
        self._control.close()
        if answer:
            kind = CommandNotFoundError if answer.get("code") == NOT_FOUND else CommandNotRunError
            raise kind(str(answer.get("error")))

    def send_signal(self, number: int) -> None:
        """Pass on a signal that was for the command; nothing once it has ended."""
        self._child.send_signal(number)

    async def wait_command(self) -> int:
        """Its exit code; 128 and the number for a signal, as a shell says it."""
        code = await process.wait_ended(self._child)
        return 128 - code if code < 0 else code

    async def close(self) -> None:
        """Take the interface away; brief.  A command that was never started ends."""
        if self._control.fileno() >= 0:
            self._control.close()
            await process.end(self._child)
        self._client.quit()
        self.device.close()


async def open_namespace_interface(config: InterfaceConfig, command: Sequence[str]) -> NamespaceInterface:
    """Make the namespaces and the interface in them, configured and up, and get `command` (words) ready to start.

    Takes about half a second.  Raises ConfigurationError with a sentence: namespaces are refused, no /dev/net/tun.
    """
    if not command or not command[0]:
        raise ConfigurationError("Say which command to run: ptunnel exec ... -- COMMAND.")
    order = json.dumps({"config": config.to_json(), "command": list(command)}).encode()
    if len(order) > MAX_MESSAGE:
        raise ConfigurationError("This command line is too long.")
    with contextlib.ExitStack() as on_failure:
        control, their_control = process.socket_pair()
        keeper, their_keeper = process.socket_pair()
        for sock in (control, keeper):
            on_failure.callback(sock.close)
        words = process.python_words("tunnel.doors.tun.inside", str(their_control.fileno()), str(their_keeper.fileno()))
        with their_control, their_keeper:
            # Until it has become the command, Ctrl-C shall not make it print a traceback.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                child = process.spawn(words, [their_control.fileno(), their_keeper.fileno()])
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        on_failure.callback(_kill, child)
        await _send(control, order)
        descriptors: list[int] = []
        answer = await _receive(control, descriptors)
        if not answer.get("ok") or len(descriptors) != 1:
            raise ConfigurationError(
                str(answer.get("error") or "The process that makes the command's network ended: run it again.")
            )
        device = from_descriptor(descriptors[0])
        on_failure.callback(device.close)
        interface = NamespaceInterface(device, child, control, process.KeeperClient(keeper))
        interface.facts = await interface.renumber(config)
        on_failure.pop_all()
        return interface


async def _send(sock: socket.socket, message: bytes) -> None:
    while True:
        try:
            sock.send(message)
            return
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket, descriptors: list[int] | None = None) -> dict[str, Any]:
    """The next message, or nothing when the other end is closed or silent; descriptors that come along are put into the list."""
    with trio.move_on_after(process.COMMAND_TIMEOUT):
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                text, received, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            except ConnectionError:
                return {}
            if descriptors is not None:
                descriptors += received
            return dict(json.loads(text)) if text else {}
    return {}


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
