"""The bounds of `ptunnel up`, each reached."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.driver.meeting import a_server
from tests.driver.ups import PATIENCE, acquaint, configure, until
from tunnel.control import server as control_server
from tunnel.control.client import ask
from tunnel.control.messages import Carry, Status
from tunnel.control.server import serve_control
from tunnel.errors import ConfigurationError
from tunnel.ports.counters import ForwardCounters
from tunnel.state.config_file import ConfigFile
from tunnel.up import codes
from tunnel.up.config import MAX_WISHES, read_wishes
from tunnel.up.home import Home, up
from tunnel.up.news import MAX_NEWS, News


async def test_no_more_codes_wait_than_max_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "MAX_CODES", 2)
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            configure(tmp_path / "ann", f'server = "{server}"\n')
            async with up(tmp_path / "ann") as home:
                first, second = await home.invite(["22"]), await home.invite(["23"])
                assert first != second
                with pytest.raises(ConfigurationError, match="2 codes wait"):
                    await home.invite(["24"])


def test_no_more_ports_are_forwarded_than_max_wishes() -> None:
    table: dict[str, Any] = {"peer": "ben", "listen": [f"10000-{10_000 + MAX_WISHES - 1}"]}
    assert len(read_wishes(ConfigFile({"forward": [table]})).forwards) == 1
    with pytest.raises(ConfigurationError, match=f"More than {MAX_WISHES} ports"):
        read_wishes(ConfigFile({"forward": [table, {"peer": "ben", "listen": ["9000"]}]}))
    with pytest.raises(ConfigurationError, match=f"to needs 1 to {MAX_WISHES} texts"):
        read_wishes(ConfigFile({"expose": [{"what": ["22"], "to": ["a"] * (MAX_WISHES + 1)}]}))


async def test_news_that_nobody_reads_is_counted_beyond_max_news() -> None:
    counters = ForwardCounters()
    news = News(counters)
    for number in range(MAX_NEWS + 3):
        news.tell({"event": "path", "number": number})
    assert counters.untold == 3
    got: list[Any] = []

    async def say(event: Any) -> None:
        got.append(event)

    with trio.move_on_after(0):
        await news.pass_on(say)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(news.pass_on, say)
        with trio.fail_after(PATIENCE):
            await until(lambda: len(got) == MAX_NEWS)
        nursery.cancel_scope.cancel()


def has_forwards(home: Home, count: int) -> bool:
    return len(home.forwards()) == count


async def test_foreground_wishes_are_held_up_to_max_held_and_go_with_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "MAX_HELD", 20)  # more than MAX_CLIENTS, which counts those that ask something
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            async with up(tmp_path / "ann") as home, serve_control(tmp_path / "run", home.process):
                [pid] = [int(path.stem) for path in (tmp_path / "run").glob("*.sock")]
                answers: list[dict[str, Any]] = []
                async with trio.open_nursery() as nursery:
                    for number in range(20):
                        request = Carry([f"0:{1_000 + number}"], peer="ben")
                        nursery.start_soon(ask, tmp_path / "run", pid, request, answers.append)
                        await until(partial(has_forwards, home, number + 1))
                    refused: list[dict[str, Any]] = []
                    await ask(tmp_path / "run", pid, Carry(["0:1"], peer="ben"), refused.append)
                    assert [each.get("code") for each in refused] == ["busy"]
                    found: list[dict[str, Any]] = []
                    await ask(tmp_path / "run", pid, Status(), found.append)
                    assert len(found[0]["forwards"]) == 20
                    nursery.cancel_scope.cancel()
                assert {each["event"] for each in answers} == {"forward"}
                await until(lambda: not home.forwards())
