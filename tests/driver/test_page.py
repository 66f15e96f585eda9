"""The page's server: what a browser gets, what it can do, and what nobody gets without the token."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.page import EVENTS, HOST, KEY, PLACE, TOKEN, browse, do, get, page_of, running
from tests.twins.home import HOSTILE_NAME, SECRET_ADDRESS, TwinHome, link
from tunnel.page.actions import MAX_WORDS
from tunnel.page.place import Place
from tunnel.page.server import ACTION_LIMIT, address_of

# ------------------------------------------------------------ what a browser gets


async def test_the_bare_page_and_its_files_are_for_everybody_and_hold_nothing_of_the_home(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        browser = browse(page, nursery)
        whole = b""
        for path in ("/", *re.findall(r'(?:href|src)="(/[^"]+)"', (await browser.ask(get("/")))[2].decode()), "/talk.js"):
            status, head, body = await browser.ask(get(path))
            assert status == 200, path
            assert "cache-control: no-store" in head.lower()
            whole += body
        assert b"Peers" in whole
        assert SECRET_ADDRESS.encode() not in whole
        assert TOKEN.encode() not in whole
        await browser.stream.send_all(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + get("/icon.svg"))
        assert b" 200 " in await browser.take_until(b"\r\n\r\n")
        assert b"<svg" in (await browser.answer())[2]


async def test_every_answer_forbids_foreign_code_frames_and_copies(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        for request in (get("/"), get("/events"), get("/nothing", head=HOST + KEY), do({"do": "x"}), b"rubbish\r\n\r\n", EVENTS):
            _status, head, _body = await browse(page, nursery).ask(request)
            policy = re.search(r"^content-security-policy: (.*)\r$", head, re.MULTILINE | re.IGNORECASE)
            assert policy is not None, request
            assert policy[1].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "frame-ancestors 'none'" in policy[1]
            assert "require-trusted-types-for 'script'" in policy[1]
            assert "unsafe" not in policy[1]
            for line in ("x-frame-options: deny", "x-content-type-options: nosniff", "referrer-policy: no-referrer",
                         "cache-control: no-store", "cross-origin-opener-policy: same-origin"):  # fmt: skip
                assert line in head.lower()
            assert "set-cookie" not in head.lower()
            assert "access-control" not in head.lower()


def test_the_pages_files_load_nothing_from_elsewhere_and_make_no_markup_of_text() -> None:
    for file in (resources.files("tunnel.page") / "site").iterdir():
        text = file.read_text(encoding="utf-8")
        text = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language, which is not looked up
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\son\w+=|\sstyle=", text), (
            file.name
        )


async def test_the_state_comes_at_once_each_second_and_after_an_action(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    page = page_of(home)
    async with running(page) as nursery:
        watcher, doer = browse(page, nursery), browse(page, nursery)
        begun = trio.current_time()
        await watcher.stream.send_all(EVENTS)
        status, head, _body = await watcher.answer()
        assert (status, "text/event-stream" in head) == (200, True)
        assert (await watcher.state())["links"][0]["remote"] == SECRET_ADDRESS
        assert trio.current_time() == begun
        await watcher.state()
        assert trio.current_time() == begun + 1
        await doer.ask(do({"do": "add_forward", "peer": "ben", "spec": "9090:90"}))
        assert (await watcher.state())["forwards"][-1]["spec"] == "9090:90"
        assert trio.current_time() == begun + 1


async def test_nothing_is_looked_at_while_no_tab_is_open(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    page = page_of(home)
    async with running(page) as nursery:
        await trio.sleep(10)
        before = home.uptime_s
        watcher = browse(page, nursery)
        await watcher.stream.send_all(EVENTS)
        await watcher.state()
        assert home.uptime_s == before + 1
        await watcher.stream.aclose()
        await trio.sleep(10)
        looked = home.uptime_s
        await trio.sleep(10)
        assert home.uptime_s == looked


async def test_names_that_others_gave_themselves_come_as_json_whatever_is_in_them(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    home.links.append(link(HOSTILE_NAME + "\n\ndata: {}\n\n", "direct"))
    page = page_of(home)
    async with running(page) as nursery:
        watcher = browse(page, nursery)
        await watcher.stream.send_all(EVENTS)
        assert (await watcher.state())["links"][-1]["peer"].startswith(HOSTILE_NAME)


# ------------------------------------------------------------ actions


@pytest.mark.parametrize(
    ("action", "call", "words"),
    [
        ({"do": "add_forward", "peer": "ben", "spec": "80:80"}, ("add_forward", "ben", "80:80", True), "80:80 leads to ben now."),
        ({"do": "remove_forward", "peer": "ben", "spec": "2222:22"}, ("remove_forward", "ben", "2222:22", True), "no more"),
        ({"do": "grant", "peer": "ben", "what": ["22", "80"]}, ("grant", "ben", ["22", "80"]), "ben may reach 22, 80 now."),
        (
            {"do": "revoke", "peer": "ben", "what": ["tcp/22"]},
            ("revoke", "ben", ["tcp/22"], True),
            "may not reach tcp/22 any more",
        ),
        ({"do": "join", "code": "731-garden-violin"}, ("join", "731-garden-violin", [], True), "You have met carol."),
    ],
)
async def test_an_action_is_done_and_said(autojump_clock: trio.abc.Clock, action: Any, call: Any, words: str) -> None:
    home = TwinHome()
    page = page_of(home)
    async with running(page) as nursery:
        status, _head, body = await browse(page, nursery).ask(do(action))
    assert (status, json.loads(body)["event"]) == (200, "done")
    assert words in json.loads(body)["message"]
    assert home.calls == [call]


async def test_an_invitation_has_the_code_the_command_and_a_picture(autojump_clock: trio.abc.Clock) -> None:
    page = page_of()
    async with running(page) as nursery:
        _status, _head, body = await browse(page, nursery).ask(do({"do": "invite", "what": ["22"]}))
    answer = json.loads(body)
    assert (answer["code"], answer["command"]) == ("731-garden-violin", "ptunnel connect 731-garden-violin@rv --forward 22")
    assert answer["message"] == "The code works once, for 10 minutes."
    assert answer["picture"].startswith("data:image/svg+xml;charset=utf-8,%3Csvg")


async def test_what_the_home_refuses_is_said_in_its_own_sentence(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    home.refusal = "8080 is taken by another program: choose another local port."
    page = page_of(home)
    async with running(page) as nursery:
        browser = browse(page, nursery)
        status, _head, body = await browser.ask(do({"do": "add_forward", "peer": "ben", "spec": "8080"}))
        assert (status, json.loads(body)) == (200, {"event": "error", "message": home.refusal})
        home.refusal = ""
        assert json.loads((await browser.ask(do({"do": "add_forward", "peer": "ben", "spec": "8080"})))[2])["event"] == "done"


async def test_a_fault_in_an_action_or_the_state_ends_no_more_than_that(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()

    async def fail() -> None:
        raise ZeroDivisionError

    home.wait = fail
    home.uptime_s = None  # type: ignore[assignment]  # nor can its state be told
    page = page_of(home)
    async with running(page) as nursery:
        browser, watcher = browse(page, nursery), browse(page, nursery)
        await watcher.stream.send_all(EVENTS)
        _status, _head, body = await browser.ask(do({"do": "grant", "peer": "ben", "what": ["22"]}))
        assert json.loads(body) == {"event": "error", "message": "A fault in ptunnel kept it from doing that; all else goes on."}
        home.wait, home.uptime_s = None, 1.0
        assert json.loads((await browser.ask(do({"do": "grant", "peer": "ben", "what": ["22"]})))[2])["event"] == "done"
        assert (await watcher.state())["pid"] == home.pid


async def test_an_action_that_nobody_answers_ends_after_its_limit(autojump_clock: trio.abc.Clock) -> None:
    home = TwinHome()
    home.wait = trio.sleep_forever
    page = page_of(home)
    async with running(page) as nursery:
        begun = trio.current_time()
        _status, _head, body = await browse(page, nursery).ask(do({"do": "join", "code": "731-garden-violin"}))
        assert "has not answered" in json.loads(body)["message"]
        assert trio.current_time() - begun == pytest.approx(ACTION_LIMIT)


@pytest.mark.parametrize("action", [
    b"", b"{", b"[]", b"\xff", b"null", {"do": "close"}, {"do": "grant", "peer": "ben"},
    {"do": "grant", "peer": "ben", "what": []},
    {"do": "grant", "peer": "", "what": ["22"]}, {"do": "grant", "peer": "x" * 129, "what": ["22"]},
    {"do": "grant", "peer": "ben", "what": ["22"] * (MAX_WORDS + 1)}, {"do": "grant", "peer": "ben", "what": "22"},
    {"do": "join", "code": 7}, {"do": "join", "code": "7", "more": 1}, b"[" * 8000,
])  # fmt: skip
async def test_what_is_no_action_reaches_no_home(autojump_clock: trio.abc.Clock, action: Any) -> None:
    home = TwinHome()
    page = page_of(home)
    async with running(page) as nursery:
        browser = browse(page, nursery)
        assert (await browser.ask(do(action)))[0] == 400
        assert home.calls == []
        assert (await browser.ask(do({"do": "grant", "peer": "ben", "what": ["22"]})))[0] == 200


# ------------------------------------------------------------ who gets nothing


STRANGE_HEADS = {
    "no token": HOST,
    "a wrong token": HOST + b"Authorization: Bearer AAAAAAAAAAAAAAAAAAAAAA\r\n",
    "the token in a cookie": HOST + b"Cookie: token=" + TOKEN.encode() + b"\r\n",
    "a name that was rebound": b"Host: evil.example:24580\r\n" + KEY,
    "another site": HOST + KEY + b"Origin: http://evil.example\r\n",
    "a program behind a forward": HOST + KEY + b"Origin: http://127.0.0.1:8080\r\nSec-Fetch-Site: same-site\r\n",
    "two hosts": HOST + KEY + b"Host: evil.example\r\n",
    "two origins": HOST + KEY + b"Origin: http://127.0.0.1:24580\r\nOrigin: http://evil.example\r\n",
}


@pytest.mark.parametrize("who", STRANGE_HEADS)
async def test_nobody_else_learns_or_does_anything(autojump_clock: trio.abc.Clock, who: str) -> None:
    home = TwinHome()
    page = page_of(home)
    head = STRANGE_HEADS[who]
    async with running(page) as nursery:
        for request in (
            get("/events", head=head), get(f"/events?token={TOKEN}", head=head),
            do({"do": "revoke", "peer": "ben", "what": ["tcp/22"]}, head=head),
            b"OPTIONS /do HTTP/1.1\r\n" + head + b"Access-Control-Request-Method: POST\r\n\r\n", get(f"/{TOKEN}", head=head),
        ):  # fmt: skip
            status, _head, body = await browse(page, nursery).ask(request)
            assert 400 <= status < 500
            assert SECRET_ADDRESS.encode() not in body
            assert TOKEN.encode() not in body
    assert home.calls == []
    assert sum(page.refused.values()) == 5


async def test_the_token_is_in_no_address_that_is_sent_nor_in_a_refusal() -> None:
    assert address_of(PLACE, TOKEN) == f"http://127.0.0.1:24580/#{TOKEN}"
    assert address_of(Place("::1", 24580), TOKEN) == f"http://[::1]:24580/#{TOKEN}"
    assert address_of(Place("", 0, "/run/page.sock"), TOKEN) == f"http://localhost:24580/#{TOKEN}"
