"""Which server a new code is for: the one that is said, the one that the code carries, and else the one of last time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunnel.cli.options import load_settings, with_last_server, with_server_of
from tunnel.errors import ConfigurationError
from tunnel.pairing.code import looks_like_code, parse_code, split_server
from tunnel.state.home import Home

Remember = Callable[..., object]


def test_the_server_of_last_time_is_used_where_none_is_said_and_that_is_told(home: Path, remember: Remember) -> None:
    remember("ben", server="old.example.net")
    remember("anna", server="rv.example.net:5000")
    state = Home(home)
    anna, ben = state.peers()
    state.update_peer(anna.static, last_seen=20.0)
    state.update_peer(ben.static, last_seen=10.0)
    settings, said = with_last_server(state, load_settings(state))
    assert settings.server == "rv.example.net:5000"
    assert settings.given_server is None, "a remembered peer is met where it is remembered"
    assert said == "Using the server rv.example.net:5000, as last time (--server none: only in this network)."


def test_a_server_that_is_said_or_refused_stays_so(home: Path, remember: Remember) -> None:
    remember("anna", server="rv.example.net")
    state = Home(home)
    for word, server in (("other.example.net", "other.example.net"), ("none", None), ("None", None)):
        settings, said = with_last_server(state, load_settings(state, {"server": word}))
        assert (settings.server, said) == (server, "")


def test_a_server_of_our_own_that_ran_for_one_code_is_none(home: Path, remember: Remember) -> None:
    from tunnel.shell.places import machine_hosts

    hosts = machine_hosts()
    if not hosts:
        hosts = ["127.0.0.1"]
    remember("anna", server=f"{hosts[0]}:24531" if ":" not in hosts[0] else f"[{hosts[0]}]:24531")
    state = Home(home)
    settings, said = with_last_server(state, load_settings(state))
    assert (settings.server, said) == (None, "") or "127.0.0.1" in hosts


def test_a_code_may_carry_its_server(home: Path) -> None:
    text = "731-taxi-suffer@rv.example.net:5000"
    assert looks_like_code(text)
    assert parse_code(text) == parse_code("731-taxi-suffer")
    code, settings = with_server_of(text, load_settings(Home(home), {"server": "other.example.net"}))
    assert (code, settings.given_server) == ("731-taxi-suffer", "rv.example.net:5000")
    assert split_server("731-taxi-suffer") == ("731-taxi-suffer", None)
    assert split_server("731-taxi-suffer@ ") == ("731-taxi-suffer", None)


def test_a_server_behind_the_code_that_cannot_be_one_is_a_sentence(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="the server behind the @ of the code"):
        with_server_of("731-taxi-suffer@300.1.1.1", load_settings(Home(home)))
