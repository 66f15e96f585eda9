"""The small privileged child: it configures one interface and keeps the hosts block, and does nothing else it is asked.

It speaks over a socket pair (SOCK_SEQPACKET: one JSON object a message, answered in order) and has no capability but
CAP_NET_ADMIN.  It ends, and takes the hosts block out, when the parent closes its end or dies.  It stays small: pyroute2 runs in
a child of its own that ends with each command that needs it.

Commands: {"id", "do"} and for do = "configure": config (InterfaceConfig.to_json); "mtu": mtu, in bytes; "names": names, as
{name: [addresses]}, all inside the interface's own subnets (those are written whose subnet it really has); "quit".  Answers:
{"id", "ok": true, "facts": [...]} or {"id", "ok": false, "error": "sentence"}.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from tunnel.doors.tun import configure
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.names import MAX_ADDRESSES, MAX_NAMES, HostsFile
from tunnel.doors.tun.privileges import CAP_NET_ADMIN, hide_memory, keep_only
from tunnel.doors.tun.routes import Network, networks_of
from tunnel.doors.tun.wall import Wall
from tunnel.errors import ConfigurationError, TunnelError

NO_WALL: Final = (
    "This kernel has no nf_tables of Linux 5.12 or newer, so the room does not reach ports that containers here publish, and "
    "Minecraft here does not see games that neighbours on this machine's own network open."
)
MAX_MESSAGE: Final = 65_536  # bytes of one command: 256 names of 4 addresses fit
MAX_MEMBER_NAME: Final = 256  # letters of a member's name before it becomes a label
CHILD_TIMEOUT: Final = 15.0  # seconds for pyroute2 to be imported and do its work; half a second is usual
_SILENT: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)  # of the terminal: the parent decides

#: Writes the names where programs look; raises ConfigurationError.
WriteNames = Callable[[dict[str, list[str]]], None]


class Keeper:
    """Executes commands for the interface `name`, whatever name a command gives."""

    def __init__(
        self,
        name: str,
        write_names: WriteNames,
        networks: Callable[[str], set[Network]] = networks_of,
        build_wall: Callable[[InterfaceConfig], None] | None = None,
    ) -> None:
        """`networks` gives what an interface reaches; `build_wall` raises ConfigurationError where that cannot be done."""
        self._build_wall = build_wall
        self._name = name
        self._networks = networks
        self._write_names = write_names
        self._config: InterfaceConfig | None = None

    @property
    def own_addresses(self) -> list[str]:
        """Of this machine in the LAN: those that a name may stand for, without the link-local one."""
        if self._config is None:
            return []
        both = [self._config.ipv4, *self._config.ipv6] if self._config.ipv4 is not None else [*self._config.ipv6]
        return [address for address, _ in both if not ipaddress.ip_address(address).is_link_local]

    def serve(self, sock: socket.socket) -> None:
        """Until the parent quits or is gone."""
        while True:
            message = sock.recv(MAX_MESSAGE + 1)
            if not message:
                return
            answer, goes_on = self.answer(message)
            try:
                sock.send(json.dumps(answer).encode())
            except OSError:
                return
            if not goes_on:
                return

    def answer(self, message: bytes) -> tuple[dict[str, Any], bool]:
        """The answer to one command, and whether there may be more."""
        number: object = None
        try:
            if len(message) > MAX_MESSAGE:
                raise ConfigurationError("This command is too long.")
            try:
                command = json.loads(message)
                number, do = command.get("id"), command.get("do")
            except (ValueError, AttributeError, RecursionError):
                raise ConfigurationError("This is no command.") from None
            if type(number) is not int:
                raise ConfigurationError("A command has a number.")
            if do == "quit":
                return {"id": number, "ok": True, "facts": []}, False
            return {"id": number, "ok": True, "facts": self._execute(do, command)}, True
        except TunnelError as error:
            return {"id": number if type(number) is int else None, "ok": False, "error": str(error)}, True

    def _execute(self, do: object, command: dict[str, Any]) -> list[str]:
        match do:
            case "configure":
                fields = command.get("config")
                config = InterfaceConfig.from_json({**fields, "name": self._name} if isinstance(fields, dict) else None)
                is_walled, told = self._walled(config)
                facts = told + _in_child(lambda: configure.apply(config, is_walled))
                self._config = config
                return facts
            case "mtu":
                mtu = command.get("mtu")
                configure.set_mtu(self._name, mtu if type(mtu) is int else -1)
                return []
            case "names":
                self._write_names(self._reachable(self._checked_names(command.get("names"))))
                return []
        raise ConfigurationError(f"{do!r} is no command.")

    def _walled(self, config: InterfaceConfig) -> tuple[bool, list[str]]:
        """Whether there is a wall, and what a person has to know."""
        if self._build_wall is None:
            return False, []
        try:
            self._build_wall(config)
        except ConfigurationError:
            return False, [NO_WALL]
        return True, []

    def _checked_names(self, names: object) -> dict[str, list[str]]:
        """Names may point into our own subnets only: the hosts file must not lead anybody astray."""
        networks = self._config.networks if self._config is not None else ()
        if not isinstance(names, dict) or len(names) > MAX_NAMES:
            raise ConfigurationError(f"A room has at most {MAX_NAMES} names.")
        for name, addresses in names.items():
            if len(name) > MAX_MEMBER_NAME or not isinstance(addresses, list) or len(addresses) > MAX_ADDRESSES:
                raise ConfigurationError(f"A name has at most {MAX_MEMBER_NAME} letters and {MAX_ADDRESSES} addresses.")
            for address in addresses:
                try:
                    parsed = ipaddress.ip_address(address if isinstance(address, str) else "")
                except ValueError:
                    raise ConfigurationError(f"{address!r} is no address that a name can stand for.") from None
                if not any(parsed in network for network in networks):
                    raise ConfigurationError(f"{parsed} is no address of this LAN.")
        return names

    def _reachable(self, names: dict[str, list[str]]) -> dict[str, list[str]]:
        """Without addresses in a subnet that was left out, since this machine uses it elsewhere: there they are somebody else."""
        try:
            present = self._networks(self._name)
        except OSError:
            return names  # the kernel tells nothing
        return {
            name: [each for each in addresses if any(ipaddress.ip_address(each) in network for network in present)]
            for name, addresses in names.items()
        }


def _in_child(action: Callable[[], list[str]]) -> list[str]:
    """Run `action` in a process that ends with it, so that what it imports goes away again.  Raises ConfigurationError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            try:
                answer: dict[str, Any] = {"facts": action()}
            except TunnelError as error:
                answer = {"error": str(error)}
            except Exception as error:
                answer = {"error": f"The interface could not be set up: {type(error).__name__}: {error}."}
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], CHILD_TIMEOUT)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        text = os.read(reader, MAX_MESSAGE)
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    result = json.loads(text) if text else {"error": f"The interface could not be set up within {CHILD_TIMEOUT:.0f} seconds."}
    if "error" in result:
        raise ConfigurationError(result["error"])
    return list(result["facts"])


def settle(keep: tuple[int, ...]) -> None:
    """Become a process that nobody sees: a session of its own, no terminal, no descriptors but `keep`, one capability."""
    with contextlib.suppress(OSError):
        os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for low, high in itertools.pairwise((2, *sorted(keep), 1 << 20)):
        os.closerange(low + 1, high)
    for number in _SILENT:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    keep_only(CAP_NET_ADMIN)
    hide_memory()


def _end(number: int, frame: object) -> None:
    raise SystemExit(0)


def _wall_by(descriptor: int, interface: str) -> Callable[[InterfaceConfig], None]:
    def refuse(config: InterfaceConfig) -> None:
        raise ConfigurationError(NO_WALL)

    return Wall(socket.socket(fileno=descriptor), interface).build if descriptor >= 0 else refuse


def main() -> None:
    """`python -m tunnel.doors.tun.keeper DESCRIPTOR INTERFACE HOSTS_FILE WALL`: started by doors/tun/host.py.

    WALL is another descriptor, of the wall's socket, or -1.
    """
    descriptor, name, hosts_path, wall = int(sys.argv[1]), sys.argv[2], os.path.abspath(sys.argv[3]), int(sys.argv[4])
    settle((descriptor, *([wall] if wall >= 0 else [])))
    hosts = HostsFile(hosts_path)
    with socket.socket(fileno=descriptor) as sock:
        try:
            Keeper(name, hosts.write, build_wall=_wall_by(wall, name)).serve(sock)
        finally:
            with contextlib.suppress(TunnelError):
                hosts.remove()


if __name__ == "__main__":
    main()
