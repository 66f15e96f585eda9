"""What the operator of a server reads with -v: who came, who met whom, what was relayed, who was refused."""

from __future__ import annotations

import logging

import pytest

from tests.unit.rendezvous.introductions import ROOMS
from tests.unit.rendezvous.world import World
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import Introduced, RefusalCode
from tunnel.shell.server_log import LOG_BURST, LOG_RATE, REPEATED, LogTrace
from tunnel.units import Address, Instant


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ptunnel.serve")
    return caplog


def world_with_log(config: ServerConfig | None = None) -> World:
    world = World(config=config)
    world.server._trace = LogTrace()
    return world


def test_each_client_each_pair_and_its_end_is_one_line(log: pytest.LogCaptureFixture) -> None:
    world = world_with_log()
    home, friend = world.host("home"), world.host("friend")
    home.client.listen(world.now, ROOMS)
    world.run(1)
    friend.client.dial(world.now, ROOMS)
    world.run(1)
    [introduced] = home.of(Introduced)
    home.relay(introduced.channel.channel, b"x" * 92)
    world.run(8)
    friend.client.close(world.now)
    world.run(1)
    first, second = home.addresses[next(iter(home.addresses))], friend.addresses[next(iter(friend.addresses))]
    assert log.messages == [
        f"{first} came (1 client now).",
        f"{second} came (2 clients now).",
        f"Pair 1: {second} met {first} again; the relay is open to them.",
        f"{second} left (1 client now).",
        "Pair 1 ended after 9 s, 100 bytes relayed: they have left.",
    ]


def test_a_refusal_says_whom_and_why_and_is_said_once_however_often_the_client_asks(log: pytest.LogCaptureFixture) -> None:
    world = world_with_log(ServerConfig(access=AccessList.parse("198.51.100.0/24", "a test")))
    for port in (5000, 5001, 5002):  # one try of a person asks from several sockets
        world.host(f"stranger {port}", "203.0.113.7", port=port).client.listen(world.now, ROOMS)
    world.run(float(REPEATED) / 2)
    assert world.server.counters()["did_denied"] == 3
    assert log.messages == ["203.0.113.7:5000 was refused: this server's operator lets only listed clients in."]


def test_what_the_protocol_heals_by_itself_is_no_news(log: pytest.LogCaptureFixture) -> None:
    trace = LogTrace()
    for code in RefusalCode:
        trace.event(Instant(0.0), "rendezvous:refused", {"remote": Address("192.0.2.1", 1), "code": code, "text": code.name})
    said = {line.split("refused: ")[1].rstrip(".") for line in log.messages}
    assert {code.name for code in RefusalCode} - said == {
        "UNKNOWN_CHANNEL", "BAD_MAC", "UNKNOWN_MAILBOX", "CLOSING", "WRONG_SERVER"
    }  # fmt: skip


def test_refusals_take_no_line_from_those_who_meet_and_the_count_of_what_is_left_out_is_said(
    log: pytest.LogCaptureFixture,
) -> None:
    trace, seconds = LogTrace(), 10
    for number in range(1000 * seconds):
        now = Instant(number / 1000)
        refused = {"remote": Address(f"192.0.2.{number % 250}", 1), "code": RefusalCode.DENIED, "text": "not listed"}
        trace.event(now, "rendezvous:refused", refused)
        if not number % 1000:
            trace.event(now, "rendezvous:registered", {"remote": Address("198.51.100.1", number), "clients": 1})
    assert sum("came (" in line for line in log.messages) == seconds
    refusals = [line for line in log.messages if "was refused" in line]
    assert LOG_BURST <= len(refusals) <= LOG_BURST + LOG_RATE * seconds + 1
    assert any(line.endswith("lines were left out here, about strangers and refusals, as more than 5 a second came")
               for line in log.messages)  # fmt: skip


def test_without_the_flag_nobody_s_address_is_written(caplog: pytest.LogCaptureFixture) -> None:
    """Not with the open directory either, of which the requests are written."""
    caplog.set_level(logging.WARNING, "ptunnel.serve")
    caplog.set_level(logging.INFO, "ptunnel.serve.directory")
    trace = LogTrace()
    somebody = Address("192.0.2.1", 1)
    trace.event(Instant(0.0), "rendezvous:registered", {"remote": somebody, "clients": 1})
    trace.event(Instant(0.0), "rendezvous:refused", {"remote": somebody, "code": RefusalCode.DENIED, "text": "not listed"})
    trace.event(Instant(0.0), "rendezvous:directory", {"remote": somebody, "text": "ip ver"})
    assert caplog.messages == ["directory remote=192.0.2.1:1 text='ip ver'"]
