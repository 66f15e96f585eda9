"""--log-json: the sentences of the log as objects, with what, who and why in words that stay the same."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.schema import PAGE, schema
from tests.style.source import ROOT
from tests.unit.rendezvous.introductions import ROOMS
from tests.unit.rendezvous.world import World
from tunnel.cli import json_log
from tunnel.cli.main import TABLE, run
from tunnel.cli.render import Output
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import Introduced
from tunnel.shell.server_log import LOG_BURST, LOG_RATE, SENTENCES, LogTrace
from tunnel.units import Address, Instant


class Lines(io.StringIO):
    """Standard error, and what stands there."""

    def objects(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        for each in found:
            assert schema()._compare(each, schema().objects["log line"]) == [], each
            assert list(each)[:3] == ["time", "level", "what"]
        return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = Lines()
    monkeypatch.setattr(sys, "stderr", stream)
    json_log.start()
    yield stream
    json_log.stop()
    root.handlers[:], root.level = before, level


def words() -> set[str]:
    section = PAGE.read_text(encoding="utf-8").split("| `what` | when |", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE))))


def test_who_came_who_met_whom_and_why_it_ended(lines: Lines) -> None:
    world = World()
    world.server._trace = LogTrace()
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
    first, second = (str(each.addresses[next(iter(each.addresses))]) for each in (home, friend))
    told = [{key: value for key, value in each.items() if key not in ("time", "level", "message")} for each in lines.objects()]
    assert told[-1].pop("seconds") == pytest.approx(9, abs=0.5)
    assert told == [
        {"what": "registered", "who": first, "clients": 1},
        {"what": "registered", "who": second, "clients": 2},
        {"what": "introduced", "who": second, "whom": first, "pair": 1},
        {"what": "left", "who": second, "why": "left", "clients": 1},
        {"what": "pair_ended", "why": "left", "pair": 1, "relayed_bytes": 100},
    ]
    assert lines.objects()[0]["message"] == f"{first} came (1 client now)."


def test_a_refusal_says_whom_and_why(lines: Lines) -> None:
    world = World(config=ServerConfig(access=AccessList.parse("198.51.100.0/24", "a test")))
    world.server._trace = LogTrace()
    world.host("stranger", "203.0.113.7").client.listen(world.now, ROOMS)
    world.run(1)
    [refused] = lines.objects()
    assert (refused["what"], refused["who"], refused["why"]) == ("refused", "203.0.113.7:5000", "denied")


def test_it_is_bounded_as_the_text_log_is_and_what_strangers_send_stays_one_line(lines: Lines) -> None:
    trace, seconds = LogTrace(), 10
    text = 'ip ver\n{"level": "error"}\x1b[31m\u2028'
    for number in range(1000 * seconds):
        somebody = Address(f"192.0.2.{number % 250}", 1)
        trace.event(Instant(number / 1000), "rendezvous:directory", {"remote": somebody, "text": text})
    found = lines.objects()
    assert LOG_BURST <= len(found) <= LOG_BURST + 2 * LOG_RATE * seconds + 2
    assert {each["what"] for each in found} == {"directory", "left_out"}
    assert sum(each["count"] for each in found if each["what"] == "left_out") > 9_000
    assert "\x1b" not in lines.getvalue()


def test_every_word_is_on_the_page() -> None:
    of_fleet = {"store", "twin"}
    reloads = {"reload_certificate", "reload_access", "reload_ignored"}
    said = {*SENTENCES, *reloads, *of_fleet, *json_log.BY_LOGGER.values(), json_log.OTHERWISE}
    of_commands = {
        word
        for name in ("up", "log", "serve")
        for word in re.findall(r'what="(\w+)"', (ROOT / "tunnel" / "cli" / f"{name}.py").read_text(encoding="utf-8"))
    }
    of_rooms_and_warnings = {"member", *schema().warnings}
    assert words() == (said | of_commands | {"left_out"}) - of_rooms_and_warnings | {"events_lost"}


def test_what_a_command_says_to_a_person_is_there_too_and_nothing_but_objects(lines: Lines) -> None:
    output = Output(is_json=True)
    output.say("Serving on udp 192.0.2.1:24531.", what="listening")
    output.say()
    output.log("ben is connected.", what="connected", who="ben", why="")
    output.warn("Codes will not outlive a restart.", "not_saved")
    logging.getLogger("ptunnel.faults").warning("A fault.", exc_info=ValueError("of a test"))
    logging.getLogger("elsewhere").info("%s", "whatever")
    found = lines.objects()
    assert [(each["level"], each["what"]) for each in found] == [
        ("info", "listening"), ("info", "connected"), ("warning", "not_saved"), ("warning", "fault"), ("info", "note"),
    ]  # fmt: skip
    assert "why" not in found[1]
    assert "ValueError: of a test" in found[3]["trace"]


@pytest.mark.parametrize(
    "arguments", [["serve", "--log-json", "--listen", "nonsense:port"], ["serve", "--log-json", "--no-such-option"]]
)
def test_a_command_that_cannot_run_says_so_as_an_object(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    json_log.stop()
    monkeypatch.setattr(sys, "stderr", lines)  # once more: pytest puts its own there between the fixtures and the test
    assert run(arguments) == 2
    [error] = lines.objects()
    assert (error["level"], error["what"]) == ("error", "usage")
    assert "usage" in {name for _kind, _code, name in TABLE}
