"""What `connect` says of what the other side shares, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tunnel.cli.connect import MOST_SHOWN, Connecting
from tunnel.cli.render import Output
from tunnel.ports.serve import Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.settings import Settings
from tunnel.shell.link import Share, Shares
from tunnel.state.home import Home

SSH, NAS = Share("tcp", 22, 22), Share("tcp", 445, 445, "nas")


def said(
    home: Path, capsys: pytest.CaptureFixture[str], shares: Sequence[Share], *forwards: str, target: int | str | None = None
) -> list[str]:
    settings = Settings(server="rv", name="friend")
    with Listeners(parse_forwards(forwards)) as listeners:
        one = Connecting(Home(home), settings, "home", None, listeners, Output(), 1.0, target)
        one._show_shares("my home" if target == "spaced" else "home", Shares(True, list(shares)))
    return capsys.readouterr().err.splitlines()


def test_without_a_forward_what_is_shared_is_offered(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(home, capsys, [SSH, NAS]) == [
        "home shares tcp/22 and tcp/nas.",
        "Nothing of it is forwarded yet: 'ptunnel connect home --forward 2222:22 --forward 1445:nas' does that.",
    ]
    assert said(home, capsys, []) == ["home shares nothing with this machine."]


def test_a_forward_that_is_shared_is_no_reason_for_more_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(home, capsys, [SSH, NAS], "0:22", "0:nas") == ["home shares tcp/22 and tcp/nas."]
    assert said(home, capsys, [SSH], target=22) == ["home shares tcp/22."]


def test_a_forward_that_is_not_shared_has_the_command_for_the_other_side(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(home, capsys, [SSH], "0:9090", "0:53/udp", "0:nas") == [
        "home does not share tcp/9090 (it shares tcp/22): ask there for 'ptunnel expose 9090 --to friend'.",
        "home does not share udp/53: ask there for 'ptunnel expose 53/udp --to friend'.",
        "home does not share tcp/nas: ask there for 'ptunnel expose nas=HOST:PORT --to friend'.",
    ]


def test_hundreds_of_shares_fill_no_screen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(home, capsys, [Share("tcp", port, port) for port in range(5000, 5200)])
    assert lines[0].endswith("tcp/5007 and more.")
    assert lines[1].count("--forward") == MOST_SHOWN


def test_a_range_that_is_not_shared_fills_no_screen_either(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(home, capsys, [SSH], "5000-5099")
    assert len(lines) == 1 + MOST_SHOWN
    assert lines[-1] == f"Nor does it share {100 - MOST_SHOWN} more of what is to be forwarded."
