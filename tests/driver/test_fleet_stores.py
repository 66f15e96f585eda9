"""Servers of a fleet with each kind of store that docs/fleet.md names: pairs meet, also after that has another primary."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, shout
from tests.driver.programs import PATIENCE_S, Program
from tests.driver.stores import ENCODED, READY_S, Stores, alone, clustered, watched
from tests.netns.lab import eventually

KEY = "0123456789abcdef" * 2


class Fleet:
    """Two servers, each a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._environment = {"PTUNNEL_FLEET": url, "PTUNNEL_FLEET_KEY": KEY}
        self._programs: list[Program] = []

    def start(self) -> None:
        hosts = ("127.0.0.2", "127.0.0.3")
        for host in hosts:
            self.run("serve", "--listen", f"{host}:0", "--drain", "0.1", "--metrics", "127.0.0.1:0")
        self._figures = [each.wait("listening", metrics=True)["bind"] for each in self._programs]
        self.places = [each.wait("listening")["bind"] for each in self._programs]  # the first to say so
        self.wait_all("servers", 2)

    def run(self, *words: str) -> Program:
        self._programs.append(Program(self._folder / "servers", *words, **self._environment))
        return self._programs[-1]

    def wait_all(self, name: str, value: int) -> None:
        """Until both have that figure."""
        eventually(f"{name} {value}", lambda: all(self._figure(at, name) == value for at in self._figures), READY_S, step=0.1)

    @staticmethod
    def _figure(place: str, name: str) -> int:
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=PATIENCE_S) as answer:
            found = re.search(rf"^ptunnel_fleet_{name} (\d+)", answer.read().decode(), re.MULTILINE)
        return int(found[1]) if found else -1

    def close(self) -> None:
        for each in self._programs:
            each.close()


@asynccontextmanager
async def a_fleet(folder: Path, kind: Callable[[Stores], Coroutine[None, None, str]]) -> AsyncIterator[tuple[Stores, Fleet]]:
    stores = Stores(folder)
    try:
        fleet = Fleet(folder, await kind(stores))
        try:
            yield stores, fleet
        finally:
            fleet.close()
    finally:
        stores.close()


@pytest.mark.time_limit(150)
@pytest.mark.parametrize("kind", [alone, watched, clustered])
async def test_pairs_meet_across_servers_also_when_their_store_has_another_primary(
    kind: Callable[[Stores], Coroutine[None, None, str]], tmp_path: Path
) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(120):
        async with a_fleet(tmp_path, kind) as (stores, fleet):
            await trio.to_thread.run_sync(fleet.start)
            one, other = fleet.places
            async with (
                tunnel.expose(["22"], server=one, home=exposer, name="home", on_event=heard, handler=echo),
                tunnel.connect(await heard.code(), server=other, home=connector) as link,
            ):
                assert await shout(link, b"paired") == b"paired"
            if stores.primary:
                await stores.fail_over()
            async with (
                tunnel.expose(server=one, home=exposer, name="home", on_event=heard, handler=echo),
                tunnel.connect(peer="home", server=other, home=connector) as link,
            ):
                assert await shout(link, b"met") == b"met"


async def test_a_store_whose_certificate_names_another_host_is_not_used_nor_one_that_does_not_know_us(tmp_path: Path) -> None:
    async def elsewhere(stores: Stores) -> str:
        return await alone(stores, name="elsewhere.example.net")

    async with a_fleet(tmp_path, elsewhere) as (_, fleet):
        url = fleet._environment["PTUNNEL_FLEET"]
        trusting = f"{url}&ssl_check_hostname=false"
        for given, code, said in (
            (url, 3, "cannot be used: Unable to establish a connection"),
            (trusting, 0, ""),
            (trusting.replace(ENCODED, "guess"), 3, "cannot be used: it does not accept our name or password"),
        ):
            fleet._environment["PTUNNEL_FLEET"] = given
            asked = fleet.run("serve", "--fleet-status")
            assert await trio.to_thread.run_sync(asked.join) == code
            assert said in str(asked.events)
