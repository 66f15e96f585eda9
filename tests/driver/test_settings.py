"""The library and the command line resolve settings once, in the same place, to the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import tunnel
from tests.driver.lan import FakeInterface
from tests.driver.meeting import Heard, a_server, echo, homes, shout
from tunnel.cli.options import load_settings
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.server_spec import TlsOptions
from tunnel.state.home import Home
from tunnel.state.peers import Peer

PIN = "ab" * 32
VALUES = {
    "server": "rv.example.net:1234",
    "name": "attic",
    "path": "relay",
    "access_token": "a-token-of-sixteen",
    "qlog": "",  # filled in by the test: a folder
    "portmap": "off",
    "tls_port": "8443",
    "tls_fingerprint": PIN,
}

Enter = Callable[..., AbstractAsyncContextManager[Any]]


async def fake_interface(config: InterfaceConfig) -> FakeInterface:
    return FakeInterface(config)


VERBS: dict[str, Enter] = {
    "connect": lambda **more: tunnel.connect("731-garden-violin", **more),
    "connect to a peer": lambda **more: tunnel.connect(peer="home", **more),
    "expose": lambda **more: tunnel.expose(["22"], **more),
    "expose alone": lambda **more: tunnel.expose(**more),
    "lan.create": lambda **more: tunnel.lan.create(**more, interface=fake_interface, routes=tunnel.lan.no_routes),
    "lan.join": lambda **more: tunnel.lan.join(
        "731-garden-violin-zoo", **more, interface=fake_interface, routes=tunnel.lan.no_routes
    ),
}


class Asked(Exception):
    """Carries what an endpoint would have been made with."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with every setting in its config.toml and one peer; no endpoint is made in it."""
    values = {**VALUES, "qlog": str(tmp_path / "traces")}
    (tmp_path / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    grant = {"protocol": "tcp", "name": None, "host": "127.0.0.1", "first": 22, "last": 22}
    Home(tmp_path).save_peer(Peer(name="home", static=bytes(32), psk=bytes(32), grants=[grant]))
    for variable in ("PTUNNEL_SERVER", "PTUNNEL_ACCESS_TOKEN", "PTUNNEL_PORTMAP", "PTUNNEL_QLOG"):
        monkeypatch.delenv(variable, raising=False)

    def refuse(**options: Any) -> Any:
        raise Asked(options)

    for module in ("ports.connecting", "ports.exposing", "room.verbs"):
        monkeypatch.setattr(f"tunnel.{module}.EndpointDriver", refuse)
    return tmp_path


async def asked(enter: Enter, **more: Any) -> dict[str, Any]:
    with pytest.raises(Asked) as caught:
        async with enter(**more):
            pass
    options: dict[str, Any] = caught.value.args[0]
    return options


@pytest.mark.parametrize("verb", VERBS)
async def test_what_config_toml_says_counts_for_the_library_as_for_the_command_line(verb: str, config: Path) -> None:
    settings = load_settings(Home(config))
    options = await asked(VERBS[verb], home=config)
    used = options["settings"]
    assert used.path == settings.path == "relay"
    assert options["name"] == settings.name == "attic"
    assert used.access_token_bytes.decode() == settings.access_token == VALUES["access_token"]
    assert options["port_mapping"] is (settings.portmap == "on") is False
    assert used.tls == settings.tls == (8443, PIN)
    assert options["traces"] is not None
    assert (config / "traces").is_dir()


@pytest.mark.parametrize("verb", VERBS)
async def test_what_the_caller_says_goes_before_that(verb: str, config: Path) -> None:
    options = await asked(VERBS[verb], home=config, path="direct", portmap=True, tls=TlsOptions(None, None))
    used = options["settings"]
    assert (used.path, options["port_mapping"], used.tls) == ("direct", True, (None, None))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('pth = "relay"', r"config\.toml:1: unknown setting 'pth'"),
        ('path = "fast"', r"config\.toml:1: path is auto, direct or relay"),
        ('server = "300.1.1.1"', r"config\.toml:1: server: '300.1.1.1' is neither"),
        ('portmap = "maybe"', r"config\.toml:1: portmap is on or off"),
        ("name = 5", r"config\.toml:1: name must be text"),
        ("# mine\n\nname = '' # none\n", r"config\.toml:3: name needs 1 to 64 printable characters"),
    ],
)
async def test_a_mistake_in_config_toml_is_said_by_the_library_too(verb: str, text: str, part: str, config: Path) -> None:
    (config / "config.toml").write_text(text)
    with pytest.raises(tunnel.ConfigurationError, match=part):
        async with VERBS[verb](home=config, **({} if "server" in text else {"server": "rv.example.net"})):
            pass


@pytest.mark.parametrize("server", ["300.1.1.1", "[2001:db8::1", "[::1]garbage", "a b:1", "-x-", "ü.example"])
async def test_what_is_no_server_is_refused_before_anything_is_asked(server: str, config: Path) -> None:
    with pytest.raises(tunnel.ConfigurationError, match="server: "):
        async with tunnel.connect("731-garden-violin", server=server, home=config):
            pass


async def test_with_relay_in_config_toml_the_library_tells_the_other_side_no_address(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    exposer.mkdir(mode=0o700)
    (exposer / "config.toml").write_text('path = "relay"\n')
    heard = Heard()
    async with (
        a_server() as server,
        tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
        tunnel.connect(await heard.code(), server=server, home=connector) as link,
    ):
        assert await shout(link, b"relayed") == b"relayed"
        assert (link.is_direct, link.status().why) == (False, "the path was set to relay")
