"""The page and the figures of `ptunnel up`: there while config.toml asks for them, and moved where it says after a reload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tunnel.cli.page import serve as serve_page
from tunnel.errors import ConfigurationError

if TYPE_CHECKING:
    from tunnel.cli.render import Output
    from tunnel.settings import Settings
    from tunnel.up.home import Home

Serve: TypeAlias = Callable[[], Awaitable[None]]
FOLLOWED: Final = ("page", "metrics")


class Beside:
    """Of one home."""

    def __init__(self, nursery: trio.Nursery, home: Home, output: Output, settings: Settings) -> None:
        """`settings`: those that the home was started with."""
        self._nursery = nursery
        self._home = home
        self._output = output
        self._settings = settings
        self._where: dict[str, str | None] = dict.fromkeys(FOLLOWED)
        self._running: dict[str, tuple[trio.CancelScope, trio.Event]] = {}

    async def follow(self, settings: Settings) -> None:
        """Have there what these settings ask for.  Raises ConfigurationError: a place cannot be had."""
        await self._move("page", settings.page, self._open_page)
        await self._move("metrics", settings.metrics, self._open_metrics)

    async def reload(self, settings: Settings) -> None:
        """The same after a reload: what fails is told, and so is what the home goes by from its next start on."""
        try:
            await self.follow(settings)
        except ConfigurationError as error:
            self._output.warn(f"{error} It is tried again at the next reload.", "not_applied")
        followed = {name: getattr(settings, name) for name in FOLLOWED}
        before, self._settings = replace(self._settings, **followed), settings
        later = [each.name for each in fields(settings) if getattr(before, each.name) != getattr(settings, each.name)]
        names = [name for name in later if not name.startswith("is_")]
        if names:
            text = f"{', '.join(names)} in config.toml changed: that counts from the next start of 'ptunnel up' on."
            self._output.warn(text, "counts_later")

    async def _move(self, name: str, where: str | None, open_there: Callable[[str], Awaitable[Serve]]) -> None:
        if where == self._where[name]:
            return
        running = self._running.pop(name, None)
        self._where[name] = None
        if running is not None:
            running[0].cancel()
            await running[1].wait()
        if where is not None:
            serve = await open_there(where)
            scope, ended = trio.CancelScope(), trio.Event()
            self._where[name], self._running[name] = where, (scope, ended)
            self._nursery.start_soon(_run, serve, scope, ended)

    async def _open_page(self, where: str) -> Serve:
        return lambda: serve_page(self._home, where, self._output)

    async def _open_metrics(self, where: str) -> Serve:
        from tunnel.server_spec import DEFAULT_METRICS_PORT, split_local_place
        from tunnel.telemetry.scrape import notice, open_scrapes

        home, output = self._home, self._output
        scrapes = await open_scrapes(split_local_place(where, "metrics", DEFAULT_METRICS_PORT), home.status, home.driver.faults)
        for address in scrapes.addresses:
            output.emit({"event": "listening", "bind": str(address), "metrics": True})
        output.say(f"Figures for Prometheus are at http://{scrapes.addresses[0]}/metrics.", what="listening")
        if text := notice(scrapes.addresses):
            output.warn(text, "metrics_public")
        return scrapes.serve


async def _run(serve: Serve, scope: trio.CancelScope, ended: trio.Event) -> None:
    try:
        with scope:
            await serve()
    finally:
        ended.set()
