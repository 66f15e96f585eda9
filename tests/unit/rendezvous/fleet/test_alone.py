"""A server without a fleet is as it was, and one that asks for a fleet says what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.style.source import ROOT
from tests.unit.rendezvous.world import World
from tunnel.cli import fleet
from tunnel.errors import ConfigurationError
from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.seal import MIN_KEY
from tunnel.units import Address

IMPORTS = """
import sys
import tunnel.cli.serve, tunnel.shell.serve
from tunnel.cli.fleet import door
assert door(None, None, (), 30.0) is None
print([name for name in sys.modules if name.split(".")[0] in {"coredis", "anyio"} or ".fleet" in name])
"""


def test_without_a_fleet_nothing_more_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['tunnel.cli.fleet']"


def test_a_server_alone_says_that_there_is_no_fleet() -> None:
    world = World()
    source = Address("198.18.0.1", 5000)
    (retry,) = world.ask(source, messages.Hello())
    assert isinstance(retry, messages.Retry)
    assert retry.epoch == 0
    (servers,) = world.ask(source, messages.Follow(5), cookie=retry.cookie)
    assert servers == messages.Servers(0, 0, ())
    (welcome,) = world.ask(source, messages.Refresh(), cookie=retry.cookie)
    assert isinstance(welcome, messages.Welcome)
    assert welcome.epoch == 0


def test_what_a_fleet_lacks_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="Name the store"):
        fleet.door(None, None, ("192.0.2.1",), 30.0)
    with pytest.raises(ConfigurationError, match="secret key"):
        fleet.door("redis://127.0.0.1/", None, (), 30.0)
    monkeypatch.setenv("PTUNNEL_FLEET_KEY", "k" * (MIN_KEY - 1))
    with pytest.raises(ConfigurationError, match=f"at least {MIN_KEY}"):
        fleet.door("redis://127.0.0.1/", None, (), 30.0)
    monkeypatch.setenv("PTUNNEL_FLEET_KEY", "k" * MIN_KEY)
    with pytest.raises(ConfigurationError, match="needs the URL of a store"):
        fleet.door("http://127.0.0.1/", None, (), 30.0)
    with pytest.raises(ConfigurationError, match="takes an address"):
        fleet.door("redis://127.0.0.1/", None, ("rv.example.net",), 30.0)
    found = fleet.door("redis://127.0.0.1/", None, ("192.0.2.1", "[2001:db8::1]:7"), 5.0)
    assert found is not None
    assert found.advertised == (("192.0.2.1", 0), ("2001:db8::1", 7))
    assert "k" * MIN_KEY not in repr(found)
