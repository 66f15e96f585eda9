"""The home that the page shows and commands: the process `up`, or in a test something that behaves like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Home(Protocol):
    """Each change is made as a whole or not at all, and raises TunnelError with a sentence.  `saves`: in config.toml, too."""

    async def add_forward(self, peer: str, spec: str, *, saves: bool = False) -> object: ...

    async def remove_forward(self, peer: str, spec: str, *, saves: bool = False) -> object: ...

    async def grant(self, peer: str, what: Sequence[str]) -> object: ...

    async def revoke(self, peer: str, what: Sequence[str] = (), *, saves: bool = False) -> object: ...

    async def invite(self, what: Sequence[str]) -> str: ...

    async def join(self, code: str, forwards: Sequence[str] = (), *, saves: bool = False) -> str: ...

    def status(self) -> Mapping[str, Any]: ...
