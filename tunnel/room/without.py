"""The interface of a member that has none: it keeps the room and lets others in, and no packet gets from it into this machine.

Needs no privilege, and no Linux.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from tunnel.doors.tun.config import InterfaceConfig
    from tunnel.faults import Faults
    from tunnel.units import Buffer


class NoDevice:
    """Nothing is ever read from it, and what is written is dropped."""

    name = ""
    offloads = 0

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()

    async def wait_readable(self) -> None:
        await trio.sleep_forever()

    def read_into(self, _buffer: memoryview) -> int:
        return 0

    def writev(self, _pieces: Iterable[Buffer]) -> bool:
        self.errors["there is no interface"] += 1
        return True


class NoInterface:
    """As room/interface.py:LanInterface."""

    name = ""

    def __init__(self) -> None:
        self.device: Any = NoDevice()
        self.facts: list[str] = []

    async def set_mtu(self, _mtu: int) -> None:
        pass

    async def renumber(self, _config: InterfaceConfig) -> list[str]:
        return []

    async def set_names(self, _names: Mapping[str, Iterable[str]]) -> None:
        pass

    async def why_shut(self) -> str | None:
        return None

    async def run_discovery(self, _send: Callable[[bytes], None], _faults: Faults, _warn: Callable[[str], None]) -> None:
        await trio.sleep_forever()

    async def close(self) -> None:
        pass


async def no_interface(_config: InterfaceConfig) -> NoInterface:
    """The `interface` argument of tunnel.lan for who wants none."""
    return NoInterface()
