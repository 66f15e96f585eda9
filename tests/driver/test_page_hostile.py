"""The page's server: hostile HTTP ends itself, and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.driver.page import EVENTS, HOST, KEY, TOKEN, Browser, browse, do, get, page_of, running
from tests.twins.home import TwinHome, offer
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.page.gate import Gate
from tunnel.page.http import IDLE_LIMIT, MAX_BODY, MAX_HEAD, REQUEST_LIMIT, WRITE_LIMIT
from tunnel.page.place import Place
from tunnel.page.server import MAX_CONNECTIONS, MAX_STREAMS, Page, open_listener

# ------------------------------------------------------------ hostile HTTP


@pytest.mark.parametrize(("request_", "status"), [
    (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 2 * MAX_HEAD + b"\r\n\r\n", 431),
    (b"GET /" + b"x" * MAX_HEAD, 431),
    (do(b" " * (MAX_BODY + 1)), 413),
    (b"POST /do HTTP/1.1\r\n" + HOST + KEY + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * (MAX_BODY + 1), 413),
    (b"POST /do HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    (b"POST /do HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    (b"POST /do HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n", 401),
    (b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + KEY + b"\r\n", 404),
    (b"PUT / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\n\r\n", 403),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403),
])  # fmt: skip
async def test_a_request_that_no_browser_sends_is_refused_and_counted(
    autojump_clock: trio.abc.Clock, request_: bytes, status: int
) -> None:
    page = page_of()
    async with running(page) as nursery:
        assert (await browse(page, nursery).ask(request_))[0] == status
        assert page.refused
        assert (await browse(page, nursery).ask(get("/")))[0] == 200


async def test_one_that_says_nothing_or_half_a_request_or_a_byte_a_second_is_sent_off(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()

    async def drip(browser: Browser) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in get("/"):
                await browser.stream.send_all(bytes([byte]))
                await trio.sleep(1)

    async with running(page) as nursery:
        begun = trio.current_time()
        half = browse(page, nursery)
        await half.stream.send_all(do({"do": "x"})[:-1])
        dripping = browse(page, nursery)
        nursery.start_soon(drip, dripping)
        for browser in (half, dripping):
            assert (await browser.answer())[0] == 408
            await browser.wait_closed()
            assert trio.current_time() - begun == pytest.approx(REQUEST_LIMIT)
        silent = browse(page, nursery)
        begun = trio.current_time()
        await silent.wait_closed()
        assert trio.current_time() - begun == pytest.approx(IDLE_LIMIT)
        used = browse(page, nursery)
        await used.ask(get("/"))
        begun = trio.current_time()
        await used.wait_closed()
        assert trio.current_time() - begun == pytest.approx(IDLE_LIMIT)
        nursery.cancel_scope.cancel()
    assert page.refused["slow"] == 2


async def test_one_that_takes_no_answer_is_sent_off_and_the_others_go_on(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        deaf = browse(page, nursery, lockstep=True)
        await deaf.stream.send_all(EVENTS)
        begun = trio.current_time()
        watcher = browse(page, nursery)
        await watcher.stream.send_all(EVENTS)
        while trio.current_time() < begun + WRITE_LIMIT:
            await watcher.state()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await deaf.stream.send_all(b"x")


async def test_pipelined_requests_are_answered_in_their_order(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    page = page_of(home)
    async with running(page) as nursery:
        browser = browse(page, nursery)
        actions = [{"do": "grant", "peer": "ben", "what": [str(port)]} for port in range(1, 101)]
        await browser.stream.send_all(b"".join(map(do, actions)) + get("/nothing", head=HOST + KEY) + b"rubbish\r\n\r\n")
        for port in range(1, 101):
            assert f"reach {port} now" in json.loads((await browser.answer())[2])["message"]
        assert (await browser.answer())[0] == 404
        assert (await browser.answer())[0] == 400
        await browser.wait_closed()
    assert len(home.calls) == 100


async def test_no_more_tabs_are_kept_up_to_date_than_the_limit(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        tabs = [browse(page, nursery) for _ in range(MAX_STREAMS)]
        for tab in tabs:
            assert (await tab.ask(EVENTS))[0] == 200
        status, _head, body = await browse(page, nursery).ask(EVENTS)
        assert (status, f"{MAX_STREAMS} places" in body.decode()) == (503, True)
        await tabs.pop().stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await browse(page, nursery).ask(EVENTS))[0] == 200
        assert page.refused["streams"] == 1


async def test_those_without_the_token_give_way_and_those_with_it_do_not(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        owner = browse(page, nursery)
        await owner.ask(do({"do": "grant", "peer": "ben", "what": ["1"]}))
        strangers = [browse(page, nursery) for _ in range(2 * MAX_CONNECTIONS)]
        assert (await owner.ask(do({"do": "grant", "peer": "ben", "what": ["2"]})))[0] == 200
        assert (await strangers[-1].ask(get("/")))[0] == 200
        await strangers[0].wait_closed()
        assert page.refused["crowded"] == MAX_CONNECTIONS + 1
    page = page_of()
    async with running(page) as nursery:
        owners = [browse(page, nursery) for _ in range(MAX_CONNECTIONS)]
        for each in owners:
            await each.ask(do({"do": "grant", "peer": "ben", "what": ["3"]}))
        assert page.admit() is None


@pytest.mark.parametrize("text", ["127.0.0.1", "unix"])
async def test_a_thousand_connections_keep_out_nobody_who_has_the_token(text: str, tmp_path: Path) -> None:
    page = page_of()
    if text == "unix":
        place = Place("", 0, str(tmp_path / "page.sock"))
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = Place("127.0.0.1", free.getsockname()[1])
    host = b"Host: localhost:%d\r\n" % (place.port or 1)
    page = Page(TwinHome(), offer, Gate(place, TOKEN), Faults())

    async def connect() -> trio.SocketStream:
        if place.path:
            return await trio.open_unix_socket(place.path)
        return await trio.open_tcp_stream("127.0.0.1", place.port)

    with open_listener(place) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(page.run, listener)
            with trio.fail_after(40):
                owner = Browser(await connect())
                assert (await owner.ask(do({"do": "grant", "peer": "ben", "what": ["1"]}, head=host + KEY)))[0] == 200
                for number in range(1_000):
                    async with await connect() as hostile:
                        await hostile.send_all([b"", b"GET / HT", b"\x00" * 100, EVENTS, get("/")][number % 5])
                assert (await owner.ask(do({"do": "grant", "peer": "ben", "what": ["2"]}, head=host + KEY)))[0] == 200
                newcomer = Browser(await connect())
                assert (await newcomer.ask(get("/", head=host)))[0] == 200
                await newcomer.stream.aclose()
                await owner.stream.aclose()
            nursery.cancel_scope.cancel()
    if place.path:
        assert not os.path.lexists(place.path)  # noqa: ASYNC240


def test_a_place_that_is_taken_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigurationError, match="choose another port for page in config"):
            open_listener(Place("127.0.0.1", other.getsockname()[1]))
    path = tmp_path / "page.sock"
    with open_listener(Place("", 0, str(path))):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigurationError, match="Another program listens"):
            open_listener(Place("", 0, str(path)))
