"""Rooms over loopback sockets: a fake interface that remembers what was asked of it, in front of the TAP's twin in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import trio

from tests.twins.tap import MemoryTap
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.faults import Faults
from tunnel.shell.events import CodeReady, Event, MemberReport

PATIENCE = 20.0


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what it looks at has no event
            await trio.sleep(0.02)


class FakeInterface:
    """An interface without a kernel."""

    def __init__(self, config: InterfaceConfig) -> None:
        self.device = MemoryTap("ptunnel9")
        self.configs = [config]
        self.names: dict[str, list[str]] = {}
        self.mtus: list[int] = []
        self.facts: list[str] = []
        self.is_closed = False
        self.refuses = False
        self.shut: str | None = None

    @property
    def name(self) -> str:
        return "ptunnel9"

    async def set_mtu(self, mtu: int) -> None:
        self.mtus.append(mtu)

    async def renumber(self, config: InterfaceConfig) -> list[str]:
        self.configs.append(config)
        return []

    async def set_names(self, names: Mapping[str, Iterable[str]]) -> None:
        self.names = {name: list(addresses) for name, addresses in names.items()}

    async def why_shut(self) -> str | None:
        return self.shut

    async def run_discovery(self, send: Callable[[bytes], None], faults: Faults, warn: Callable[[str], None]) -> None:
        self.send_to_all = send
        await trio.sleep_forever()

    async def close(self) -> None:
        self.is_closed = True
        self.device.close()


class Player:
    """One home's events and interface; `options` go to tunnel.lan.create and join."""

    def __init__(self, home: Any, server: str | None, name: str, *, routes: Iterable[str] = ()) -> None:
        self.heard: list[Event] = []
        self.interfaces: list[FakeInterface] = []
        self.routes = list(routes)
        self.options: dict[str, Any] = {
            "home": home, "server": server, "member_name": name, "on_event": self.heard.append, "interface": self._open,
            "routes": lambda _name: list(self.routes), "portmap": False,
        }  # fmt: skip

    async def _open(self, config: InterfaceConfig) -> FakeInterface:
        self.interfaces.append(FakeInterface(config))
        return self.interfaces[-1]

    @property
    def interface(self) -> FakeInterface:
        return self.interfaces[-1]

    async def wait(self, wanted: Callable[[Event], bool]) -> Event:
        with trio.fail_after(PATIENCE):
            while True:
                for event in self.heard:
                    if wanted(event):
                        return event
                await trio.sleep(0.02)

    async def code(self) -> str:
        event = await self.wait(lambda event: isinstance(event, CodeReady))
        assert isinstance(event, CodeReady)
        return [each.code for each in self.heard if isinstance(each, CodeReady)][-1]

    async def member(self, name: str, state: str) -> MemberReport:
        """The last of such reports, once there is one."""
        await self.wait(lambda event: isinstance(event, MemberReport) and (event.peer, event.state) == (name, state))
        found = [each for each in self.heard if isinstance(each, MemberReport) and (each.peer, each.state) == (name, state)]
        return found[-1]
