"""Limits that an operator sets: by name, and only to numbers of their kind."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.style.source import ROOT
from tunnel.cli.serve import _limited
from tunnel.errors import ConfigurationError
from tunnel.rendezvous.limits import LIMITS, ServerConfig, with_limits
from tunnel.units import Seconds


def test_every_number_of_the_configuration_is_a_limit_and_its_default_would_be_taken() -> None:
    usual = ServerConfig()
    assert {"max_sessions", "session_lifetime", "pair_rate"} <= set(LIMITS)
    assert not {"access", "open_directory", "own_hosts", "has_guests", "software"} & set(LIMITS)
    assert with_limits(usual, {name: getattr(usual, name) for name in LIMITS}, "here") == usual


def test_what_is_said_goes_before_the_default() -> None:
    usual = ServerConfig(open_directory=True)
    config = with_limits(usual, {"max_sessions": 200_000, "session_lifetime": 60}, "here")
    assert config == replace(usual, max_sessions=200_000, session_lifetime=Seconds(60.0))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", None, 1 << 60, float("nan")])
def test_what_is_no_such_number_is_a_sentence(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^here: max_sessions must be a whole number above 0, not "):
        with_limits(ServerConfig(), {"max_sessions": value}, "here")


def test_an_unknown_name_is_a_sentence_that_says_where_the_names_are() -> None:
    with pytest.raises(ConfigurationError, match=r"^here: there is no limit 'max_session'; docs/server\.md"):
        with_limits(ServerConfig(), {"max_session": 5}, "here")


def test_the_command_line_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("PTUNNEL_HOME", str(home))
    usual = ServerConfig()
    assert _limited(usual, ()) == usual
    (home / "config.toml").write_text('server = "rv.example.net"\n[serve]\nmax_sessions = 5\npair_rate = 1e6\n')
    (home / "config.toml").chmod(0o600)
    config = _limited(ServerConfig(), ("max_sessions=7", "push_lifetime=2.5"))
    assert (config.max_sessions, config.pair_rate, config.push_lifetime) == (7, 1e6, 2.5)
    for text in ("max_sessions", "max_sessions=", "max_sessions=lots"):
        with pytest.raises(ConfigurationError, match="say NAME=NUMBER"):
            _limited(ServerConfig(), (text,))
    (home / "config.toml").write_text('serve = "much"\n')
    with pytest.raises(ConfigurationError, match="is a table"):
        _limited(ServerConfig(), ())


def test_the_pages_say_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", (ROOT / "docs/server.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 10
    assert [(name, str(LIMITS[name](getattr(ServerConfig(), name)))) for name, _ in rows] == rows
    table = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    assert [name for name in LIMITS if f"`ServerConfig.{name}`" not in table] == []
