"""Figures for Prometheus over HTTP: whoever scrapes is answered, and whoever is slow, huge or many ends alone."""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.driver.programs import PATIENCE_S, Lab, echo_through, pair
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.telemetry.metrics import METRICS
from tunnel.telemetry.scrape import ANSWER_PATIENCE, FRESH, MAX_HEAD, MAX_SCRAPERS, REQUEST_PATIENCE, Scrapes, notice
from tunnel.units import Address

GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@asynccontextmanager
async def serving(text: Callable[[], bytes] = lambda: b"figures 1\n", **patience: float) -> AsyncIterator[Scrapes]:
    scrapes = Scrapes(text, Faults(tell=lambda _text: None), **patience)
    await scrapes.open("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrapes.serve)
        yield scrapes
        nursery.cancel_scope.cancel()


async def connect(scrapes: Scrapes) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", scrapes.addresses[0].port)


async def rest(stream: trio.SocketStream) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with trio.fail_after(PATIENCE_S):
        try:
            while part := await stream.receive_some(65_536):
                found += part
        except trio.BrokenResourceError:  # it was closed with something of ours unread
            pass
    return found


async def ask(scrapes: Scrapes, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body."""
    async with await connect(scrapes) as stream:
        await stream.send_all(request)
        head, _, body = (await rest(stream)).partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


async def test_a_scrape_gets_the_figures_and_the_connection_ends() -> None:
    async with serving() as scrapes:
        status, head, body = await ask(scrapes, GET)
        assert (status, body) == (200, b"figures 1\n")
        assert b"text/plain; version=0.0.4" in head
        assert b"no-store" in head
        assert scrapes.counts["status_200"] == 1


@pytest.mark.parametrize(
    ("request_line", "host", "status"),
    [
        ("GET /metrics?name=a HTTP/1.1", "localhost:9464", 200),
        ("GET /metrics HTTP/1.1", "[::1]:9464", 200),
        ("GET / HTTP/1.1", "127.0.0.1", 200),
        ("GET /metricsx HTTP/1.1", "127.0.0.1", 404),
        ("GET /../etc/passwd HTTP/1.1", "127.0.0.1", 404),
        ("POST /metrics HTTP/1.1", "127.0.0.1", 405),
        ("GET /metrics HTTP/1.1", "evil.example:9464", 421),
        ("GET /metrics HTTP/1.1", "localhost.evil.example", 421),
    ],
)
async def test_only_the_figures_are_there_and_only_under_a_name_of_this_machine(
    request_line: str, host: str, status: int
) -> None:
    """A page of another site could else read them, by giving its own name the address 127.0.0.1."""
    async with serving() as scrapes:
        found, _, body = await ask(scrapes, f"{request_line}\r\nHost: {host}\r\n\r\n".encode())
        assert found == status
        assert (b"figures" in body) == (status == 200 and "/metrics" in request_line) or b"/metrics" in body


async def test_a_head_request_gets_no_body() -> None:
    async with serving() as scrapes:
        status, head, body = await ask(scrapes, GET.replace(b"GET", b"HEAD"))
        assert (status, body) == (200, b"")
        assert b"content-length: 10" in head.lower()


@pytest.mark.parametrize(
    "junk",
    [b"\x16\x03\x01\x02\x00\x01\x00" * 40, b"\r\n\r\n\r\n\r\n", b"GET /metrics FTP/1.0\r\n\r\n", b"GET\x00/ HTTP/1.1\r\n\r\n"],
)
async def test_what_is_no_http_ends_its_own_connection_and_is_no_fault(junk: bytes) -> None:
    async with serving() as scrapes:
        async with await connect(scrapes) as stream:
            await stream.send_all(junk)
            await stream.send_eof()
            assert b"figures" not in await rest(stream)
        assert (await ask(scrapes, GET))[0] == 200
        assert not scrapes._faults.counts


async def test_a_head_without_end_is_refused_at_its_limit() -> None:
    async with serving() as scrapes:
        status, _, _ = await ask(scrapes, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD + 1))
        assert status == 431


async def test_what_comes_behind_a_request_is_not_answered() -> None:
    async with serving() as scrapes:
        async with await connect(scrapes) as stream:
            await stream.send_all(GET * 5)
            assert (await rest(stream)).count(b"figures 1") == 1
        assert scrapes.counts["status_200"] == 1


def test_a_connection_lasts_some_seconds_where_nothing_else_is_said() -> None:
    scrapes = Scrapes(lambda: b"")
    assert (scrapes._request_patience, scrapes._answer_patience) == (REQUEST_PATIENCE, ANSWER_PATIENCE)


async def test_who_sends_no_whole_request_in_time_is_closed() -> None:
    async with serving(request_patience=0.2) as scrapes:
        async with await connect(scrapes) as silent, await connect(scrapes) as slow:
            await slow.send_all(GET[:-2])
            assert await rest(silent) == b""
            assert await rest(slow) == b""
        assert scrapes.counts["slow"] == 2


async def test_who_does_not_take_the_answer_is_closed() -> None:
    async with serving(lambda: b"x" * (1 << 26), answer_patience=0.2) as scrapes, await connect(scrapes) as stream:
        await stream.send_all(GET)
        with trio.fail_after(PATIENCE_S):
            while not scrapes.counts["untaken"]:  # noqa: ASYNC110 -- a count has no event
                await trio.sleep(0.02)


async def test_silent_connections_keep_prometheus_out_neither_by_number_nor_for_long() -> None:
    async with serving() as scrapes, trio.open_nursery() as nursery:
        idle = [await connect(scrapes) for _ in range(3 * MAX_SCRAPERS)]
        assert (await ask(scrapes, GET))[0] == 200
        ended = 0

        async def wait(stream: trio.SocketStream) -> None:
            nonlocal ended
            await rest(stream)
            ended += 1

        for each in idle[: 2 * MAX_SCRAPERS]:  # who came first gave way
            nursery.start_soon(wait, each)
        with trio.fail_after(PATIENCE_S):
            while ended < 2 * MAX_SCRAPERS:  # noqa: ASYNC110
                await trio.sleep(0.02)
        assert scrapes.counts["displaced"] >= 2 * MAX_SCRAPERS
        for each in idle:
            await each.aclose()


async def test_figures_are_made_once_however_many_ask_in_a_moment() -> None:
    made = 0

    def text() -> bytes:
        nonlocal made
        made += 1
        return b"figures %d\n" % made

    async with serving(text) as scrapes:
        started = trio.current_time()
        bodies = [(await ask(scrapes, GET))[2] for _ in range(10)]
        assert made <= (trio.current_time() - started) / FRESH + 1
        assert bodies[0] == b"figures 1\n"


async def test_a_fault_while_figures_are_made_ends_one_request() -> None:
    trouble = [RuntimeError("of a test")]

    def text() -> bytes:
        if trouble:
            raise trouble.pop()
        return b"figures 1\n"

    async with serving(text) as scrapes:
        async with await connect(scrapes) as stream:
            await stream.send_all(GET)
            assert await rest(stream) == b""
        assert scrapes._faults.counts["metrics"] == 1
        assert (await ask(scrapes, GET))[0] == 200


async def test_an_address_that_cannot_be_used_is_one_sentence() -> None:
    async with serving() as scrapes:
        for host, port, word in (
            ("127.0.0.1", scrapes.addresses[0].port, "in use already"),
            ("192.0.2.1", 0, "not an address of this machine"),
            ("nowhere.invalid", 0, "no known name"),
        ):
            with pytest.raises(ConfigurationError, match=word):
                await Scrapes(lambda: b"").open(host, port)


def test_an_address_that_others_reach_is_said() -> None:
    assert notice([Address("127.0.0.1", 9464), Address("::1", 9464)]) == ""
    assert "203.0.113.5:9464" in notice([Address("127.0.0.1", 9464), Address("203.0.113.5", 9464)])
    assert "0.0.0.0:9464" in notice([Address("0.0.0.0", 9464)])


def test_a_server_that_is_used_shows_every_counter_of_it_to_prometheus(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    try:
        server = lab.run(tmp_path / "measured", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        lab.server = server.wait("listening")["bind"]
        place = server.wait("listening", metrics=True)["bind"]
        _exposing, _connecting, bind = pair(lab)
        assert echo_through(bind, b"hello") == b"hello"
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        figures = {sample.name: sample.value for family in families.values() for sample in family.samples if not sample.labels}
        assert figures["ptunnel_server_sessions"] == 2
        assert figures["ptunnel_server_received_bytes_total"] > 1_000
        assert "# TYPE ptunnel_server_received_bytes_total counter" in text
        events = {sample.labels["event"] for sample in families["ptunnel_server_events"].samples}
        assert {"claimed", "registered"} <= events
        ours = {sample.name for family in families.values() for sample in family.samples if sample.name.startswith("ptunnel_")}
        assert ours <= {each.name for each in METRICS}
        assert "127.0.0.1" not in text, "no client is named"
        assert server.end()[0] in (0, 130)
    finally:
        lab.close()
