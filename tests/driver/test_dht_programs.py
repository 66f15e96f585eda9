"""Every command with --server dht: the programs themselves on loopback, and rooms of three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.lan import Player
from tests.driver.programs import Lab, echo_through
from tests.driver.test_dht import a_dht
from tests.driver.ups import configure, echo, local, talk
from tunnel.server_spec import DHT
from tunnel.up.home import up

LIMIT = 50.0


async def test_three_meet_in_a_room_by_one_code_each_pair_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        anna, ben, cleo = (Player(tmp_path / name, DHT, name) for name in ("anna", "ben", "cleo"))
        with trio.fail_after(LIMIT):
            async with tunnel.lan.create("game", **anna.options):
                code = await anna.code()
                async with tunnel.lan.join(code, **ben.options) as second, tunnel.lan.join(code, **cleo.options) as third:
                    for player, other in ((ben, "cleo"), (cleo, "ben"), (anna, "cleo"), (anna, "ben")):
                        await player.member(other, "online")
                    for room in (second, third):
                        assert {member.link.status().kind for member in room.members() if member.link is not None} == {"direct"}


async def test_a_room_that_is_kept_is_entered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        anna, ben = (Player(tmp_path / name, DHT, name) for name in ("anna", "ben"))
        with trio.fail_after(LIMIT):
            async with (
                tunnel.lan.create("game", keep=True, **anna.options),
                tunnel.lan.join(await anna.code(), keep=True, **ben.options),
            ):
                await anna.member("ben", "online")
            async with tunnel.lan.create("game", **anna.options), tunnel.lan.join(room="game", **ben.options) as room:
                await ben.member("anna", "online")
                assert room.server == DHT


@pytest.mark.parametrize("servers", ['"dht"', '["127.0.0.1:9,tls=off", "dht"]'])
async def test_homes_that_are_always_on_meet_and_invite_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: str
) -> None:
    async with a_dht() as addresses, echo() as port:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        for name in ("ann", "ben"):
            configure(tmp_path / name, f'server = {servers}\nportmap = "off"\n')
        with trio.fail_after(LIMIT):
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                peer = await anns.join(await bens.invite([f"{port}"]), [f"0:{port}"])
                async with await talk(local(anns, peer)[0]):
                    pass
            wishes = f'[[forward]]\npeer = "{peer}"\nlisten = ["0:{port}"]\n'
            configure(tmp_path / "ann", f'server = {servers}\nportmap = "off"\n{wishes}')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"), await talk(local(anns, peer)[0]):
                pass


def run_programs(lab: Lab) -> None:
    """Runs in a thread, beside the nodes."""
    ask = lab.ask
    assert ask(lab.exposer, "config", "server", "dht").returncode == 0
    assert 'server = "dht"' in (lab.exposer / "config.toml").read_text(encoding="utf-8")
    exposing = lab.run(lab.exposer, "expose", str(lab.port), "--name", "home")
    code = exposing.wait("code")["code"]
    assert exposing.wait("warning", code="strangers")
    options = ("--server", "dht", "--forward", f"0:{lab.port}", "--name", "friend")
    connecting = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code)
    bind = connecting.wait("forward", target=f"tcp/{lab.port}")["bind"]
    assert echo_through(bind, b"over the DHT") == b"over the DHT"
    status = ask(lab.connector, "status", "--json")
    assert status.returncode == 0
    assert '"direct"' in status.stdout
    ping = ask(lab.connector, "ping", "home", "--count", "2", "--interval", "0.1", "--json")
    assert ping.returncode == 0, ping.stderr
    connecting.end()
    again = lab.run(lab.connector, "connect", "home", "--forward", f"0:{lab.port}")
    assert echo_through(again.wait("forward", target=f"tcp/{lab.port}")["bind"], b"by name") == b"by name"
    doctor = ask(lab.connector, "doctor", "--server", "dht", "--json")
    assert doctor.returncode == 0, doctor.stderr
    assert json.loads(doctor.stdout.splitlines()[0])["reached"], doctor.stdout
    refused = ask(lab.connector, "connect", "home", "--path", "relay")
    assert (refused.returncode, "no relay without a server" in refused.stderr) == (2, True)


async def test_programs_meet_by_a_code_and_a_name_and_say_how_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_dht() as addresses:
        monkeypatch.setenv("PTUNNEL_DHT_BOOTSTRAP", f"{addresses[0]},{addresses[1]}")
        lab = Lab(tmp_path)
        try:
            await trio.to_thread.run_sync(run_programs, lab)
        finally:
            await trio.to_thread.run_sync(lab.close)
