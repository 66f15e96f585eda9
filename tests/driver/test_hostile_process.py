"""An authenticated peer says anything, and the real program on the other side lives, serves others and prints what is sane."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.lan import Player
from tests.driver.meeting import a_server
from tests.driver.programs import Lab, echo_through
from tests.fuzz.engine import Mutator
from tests.fuzz.machines.bench import corpus as bench_answers
from tests.fuzz.machines.decoders import OFFER, OPENINGS, ROOM
from tunnel.cli.status import page
from tunnel.control.messages import decode_answer, encode_line
from tunnel.errors import TunnelError
from tunnel.nat.candidate import encode_offer
from tunnel.node.peering import CONTROL_OFFER, CONTROL_PING, CONTROL_PONG, CONTROL_ROOM
from tunnel.ports.open import encode
from tunnel.room.core.messages import encode as encode_message
from tunnel.setup.store import HomeStore
from tunnel.shell.link import Link
from tunnel.shell.stream import TunnelStream

ROUNDS = 150  # of mutated messages between two questions of a person
ANSWERS = sorted({each for answers in bench_answers() if answers[0] & 1 for each in answers[1:].split(b"\xfe")})
NAME = "evil \x1b[2J\u202e\n\x07" + "x" * 30
GOODBYE = "so long \x1b[31m\u2028\r\n" + "y" * 100


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def control_corpus() -> list[bytes]:
    pings = [bytes((kind,)) + b"p" * 8 for kind in (CONTROL_PING, CONTROL_PONG)]
    rooms = [bytes((CONTROL_ROOM,)) + encode_message(each) for each in ROOM]
    return [bytes((CONTROL_OFFER,)) + encode_offer(OFFER), *pings, *rooms, b"\0", b"\x63later"]


class Evil:
    """Holds a link, and says anything over it."""

    def __init__(self, link: Link, seed: int) -> None:
        self.link = link
        self.rng = random.Random(seed)
        self.control = Mutator(self.rng, control_corpus())
        self.openings = Mutator(self.rng, [encode(each) + bytes(9) for each in OPENINGS])
        self.answers = Mutator(self.rng, ANSWERS)

    async def serve(self) -> None:
        await self.link.serve_streams(self._answer)

    async def _answer(self, stream: TunnelStream) -> None:
        """Whatever it was that the honest side wants to measure."""
        said = self.answers.next()
        with contextlib.suppress(TunnelError):
            await stream.send_all(said[1:20])
            await trio.sleep(self.rng.random() / 4)
            await stream.send_all(said[20:])
            match self.rng.randrange(4):
                case 0:
                    stream.finish()
                case 1:
                    stream.reset(self.rng.randrange(65_536))
                case 2:
                    stream.stop(self.rng.randrange(65_536))
                case _:
                    await trio.sleep(1)

    async def rage(self, rounds: int = ROUNDS) -> None:
        connection = self.link.connection
        assert connection is not None
        for _ in range(rounds):
            if self.link.close_reason is not None:
                return  # as by a Leave, in a room
            match self.rng.randrange(4):
                case 0 | 1:
                    connection.send_control(self.control.next()[:1_000])
                case 2:
                    self.link.flows.send(self.rng.randrange(9), [self.rng.randbytes(self.rng.randrange(1, 1_300))])
                case _:
                    with trio.move_on_after(0.2), contextlib.suppress(TunnelError):
                        stream = await self.link.open_stream(self.openings.next()[:900])
                        if self.rng.random() < 0.5:
                            stream.finish()
                        else:
                            await stream.aclose()
            self.link._flush()
            if self.rng.random() < 0.2:
                await trio.sleep(0.001)


def is_sane(done: subprocess.CompletedProcess[str], codes: tuple[int, ...] = (0, 5)) -> None:
    said = done.stdout + done.stderr
    assert done.returncode in codes, said
    assert "bug" not in said
    assert "Traceback" not in said
    assert "fault" not in said
    assert all(line.isprintable() for line in said.splitlines()), repr(said)


@pytest.mark.time_limit(120)
async def test_the_program_survives_whatever_a_paired_peer_says_and_serves_its_friend(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HomeStore, "name", lambda _store: NAME)  # which no honest program would send
    exposing = await trio.to_thread.run_sync(partial(lab.expose, str(lab.port), "--keep"))
    code = (await trio.to_thread.run_sync(exposing.wait, "code"))["code"]
    options = ("--server", lab.server, "--forward", f"0:{lab.port}", "--name", "friend")
    friend = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code)
    bind = (await trio.to_thread.run_sync(friend.wait, "forward"))["bind"]

    def newest() -> str:
        while len(codes := [each["code"] for each in exposing.events if each["event"] == "code"]) < 2:
            exposing.process.poll()
        return str(codes[-1])

    code = await trio.to_thread.run_sync(newest)
    ask = partial(lab.ask, lab.exposer)
    async with (
        tunnel.connect(code, server=lab.server, home=tmp_path / "evil", name="evil") as link,
        trio.open_nursery() as nursery,
    ):
        evil = Evil(link, 5)
        nursery.start_soon(evil.serve)
        known = json.loads((await trio.to_thread.run_sync(ask, "peers", "--json")).stdout.splitlines()[-1])
        peers = [json.loads(line)["peer"] for line in (await trio.to_thread.run_sync(ask, "peers", "--json")).stdout.splitlines()]
        name = next(each for each in peers if each.startswith("evil"))
        assert known["event"] == "peer"
        questions = [
            ("status",), ("status", "--json"), ("ping", name, "--count", "2", "--interval", "0.01"), ("peers",),
            *[("bench", name, "--time", "0.1")] * 4, ("bench", name, "--time", "0.1", "--json"), ("status", "--check", "direct"),
        ]  # fmt: skip
        for words in questions:
            await evil.rage()
            is_sane(await trio.to_thread.run_sync(ask, *words))
            assert await trio.to_thread.run_sync(echo_through, bind, b"still served") == b"still served"
            assert exposing.process.poll() is None
        status = json.loads((await trio.to_thread.run_sync(ask, "status", "--json")).stdout)
        assert "faults" not in status["drops"], status["drops"]["faults"]  # no wall had to hold anything
        assert {each["peer"] for each in status["links"]} == {"friend", name}
        link.close(GOODBYE, 1)
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(exposing.wait, "closed")
    assert await trio.to_thread.run_sync(echo_through, bind, b"and on") == b"and on"
    ended, _ = await trio.to_thread.run_sync(exposing.end)
    assert ended == 130
    said = exposing.stderr()
    assert "Traceback" not in said
    assert all(line.isprintable() for line in said.splitlines()), repr(said)
    told = "".join(str(value) for event in exposing.events for value in event.values())
    assert told.isprintable()


@pytest.mark.time_limit(120)
async def test_a_room_survives_whatever_a_member_says_and_its_table_stays_readable(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with a_server() as server:
            anna, ben, mallory = (Player(tmp_path / name, server, name) for name in ("anna", "ben", "mallory"))
            async with tunnel.lan.create("game", **anna.options) as created:
                code = await anna.code()
                async with tunnel.lan.join(code, **ben.options) as honest, tunnel.lan.join(code, **mallory.options) as hostile:
                    await anna.member("ben", "online")
                    await ben.member("mallory", "online")
                    for seed, link in enumerate(hostile.links):
                        async with trio.open_nursery() as nursery:
                            evil = Evil(link, seed)
                            nursery.start_soon(evil.rage, 600)
                    await trio.sleep(0.5)
                    for each in (created, honest):
                        links = [one.status().to_dict() for one in each.links]
                        answer: dict[str, Any] = {"event": "status", "pid": 1, "role": "lan", "uptime_s": 1.0, "links": links}
                        lines = page([decode_answer(encode_line({**answer, **each.status()}))])
                        assert all(line.isprintable() for line in lines)
                        assert any("ben" in line for line in lines)
                        assert "faults" not in each.driver.counters(), each.driver.counters()["faults"]
                    assert next(one for one in honest.members() if one.name == "anna").is_online
                    assert next(one for one in created.members() if one.name == "ben").is_online
