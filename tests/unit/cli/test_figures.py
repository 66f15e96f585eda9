"""Figures that another process says, of whatever version: shown, or a question mark; and a picture that fails ends nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from tunnel.cli.bench import row
from tunnel.cli.render import LARGEST, UNKNOWN, Output, duration, milliseconds, number, rate, short_duration, size, traffic
from tunnel.cli.status import page

NONE: tuple[Any, ...] = (None, True, "12", [], {}, float("nan"), float("inf"), -float("inf"), LARGEST, 10**400)


@pytest.mark.parametrize("value", NONE)
def test_what_is_no_figure_is_shown_as_unknown(value: Any) -> None:
    assert number(value) is None
    for show in (duration, milliseconds, short_duration, size):
        assert show(value) == UNKNOWN
    assert rate(value) == f"{UNKNOWN}/s"


@pytest.mark.parametrize("value", NONE)
def test_a_link_of_unknown_figures_still_has_its_line(value: object) -> None:
    status = dict.fromkeys(("packets_sent", "packets_lost", "send_rate", "receive_rate", "rtt_age_s"), value)
    assert traffic(status).startswith("loss 0.0 %  up ")


def test_a_number_that_has_no_words_of_its_own_is_shown_by_its_name() -> None:
    status = {"packets_sent": 200, "packets_lost": 1, "packets_received": 7, "streams": 1, "mtu": 1_452, "reachable": True}
    assert traffic({**status, "probe_timeouts": 3, "held": 0, "huge": 10**400}) == (
        "loss 0.5 %  up 0 B/s  down 0 B/s  1 stream  probe timeouts 3"
    )


def test_a_result_of_another_version_is_shown_as_it_came(of_another_version: None) -> None:
    for strange in ({"what": "stream", "way": "up", "mbit_s": None}, {"event": "bench"}):
        assert strange.items() <= json.loads(row(strange)).items()


def test_a_process_of_another_version_has_one_line_on_the_page_and_the_others_have_theirs() -> None:
    good: dict[str, Any] = {"event": "status", "pid": 7, "role": "expose", "uptime_s": 5, "links": []}
    strange = [{**good, "links": None}, {**good, "uptime_s": []}, {"event": "status"}, {**good, "links": [{"peer": "x"}]}]
    lines = page([*strange, good])
    assert lines[-1] == "expose  process 7  for 5 seconds  no link yet"
    assert sum("does not understand" in line for line in lines) == 3
    assert sum("for ? " in line for line in lines) == 1


async def test_a_picture_that_cannot_be_drawn_ends_nothing(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output()
    output.is_live = True
    drawn = 0

    def lines() -> list[tuple[str, bool]]:
        nonlocal drawn
        drawn += 1
        raise OverflowError("cannot convert float infinity to integer")

    async with output.live(lines):
        await trio.sleep(5)
    assert drawn > 4
    assert output.faults.counts == {"screen": drawn}
    assert capsys.readouterr().err.count("A fault in ptunnel kept the status from being shown") == 1
