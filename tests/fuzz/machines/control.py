"""The control socket: lines of any bytes to a conversation, whose links say any numbers of themselves."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock, memory_stream_pair

from tests.fuzz.engine import Machine
from tests.fuzz.machines.consumers import LINK
from tests.fuzz.machines.decoders import ASKED
from tunnel.cli.bench import row
from tunnel.cli.status import page
from tunnel.control.messages import MAX_ANSWER, decode_answer, encode_line
from tunnel.control.server import Crowd, Process, _Conversation
from tunnel.control.sockets import Lines
from tunnel.errors import ConfigurationError, MalformedPacket, UnreachableError
from tunnel.faults import Faults
from tunnel.shell.link import Link

ODD = (float("nan"), float("inf"), -1.0, 0.0, 5e-324, 1e308, None, 2**70, "", "\u2028\x1b[2J", "x" * 300)


class _Link:
    """Says anything of itself, and fails in the ways that are foreseen."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.peer_name = rng.choice(("home", "ben", "home\u00e9"))
        self.fingerprint = "SHA256:x"
        self.is_direct = rng.random() < 0.5

    def status(self) -> Any:
        said = {key: self._rng.choice(ODD) if self._rng.random() < 0.2 else value for key, value in LINK.items()}
        return SimpleNamespace(**said, to_dict=lambda: said)

    async def wait_direct(self) -> None:
        await trio.sleep(self._rng.random() * 3)
        if self._rng.random() < 0.3:
            raise UnreachableError("gone")

    async def ping(self) -> float:
        await trio.sleep(self._rng.random() * 7)
        if self._rng.random() < 0.2:
            raise UnreachableError("gone")
        return self._rng.random() - 0.5

    def close(self, _reason: str, _code: int) -> None:
        pass


class _Control:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.reports: list[str] = []

    def feed(self, data: bytes) -> None:
        trio.run(self._converse, data, clock=MockClock(autojump_threshold=0))
        assert "\n".join(self.reports) == ""

    async def _converse(self, data: bytes) -> None:
        async def bench(_link: object, _seconds: float, say: Any) -> None:
            await say({"what": "stream", "way": "up", "mbit_s": self.rng.choice(ODD), "lost_percent": self.rng.choice(ODD)})

        def remove(member: str, _room: str | None) -> tuple[str, str] | None:
            if self.rng.random() < 0.3:
                raise ConfigurationError("no such member")
            return ("game", member)

        def keep(text: str) -> str:
            self.reports.append(text)
            return ""

        process = Process(
            role="connect",
            links=lambda: [cast(Link, _Link(self.rng)) for _ in range(self.rng.randrange(3))],
            bench=bench,
            remove=remove,
            details=lambda: {"drops": {"x": self.rng.choice(ODD)}},
            faults=Faults(keep=keep),
        )
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                wall = process.faults.wall("control", "ended a conversation")
                with wall, contextlib.suppress(trio.BrokenResourceError, MalformedPacket):
                    await _Conversation(theirs, process, Crowd()).run()  # type: ignore[arg-type]
                await theirs.aclose()

            nursery.start_soon(serve)
            await ours.send_all(data)
            await ours.send_eof()
            lines = Lines(ours, MAX_ANSWER)
            with trio.move_on_after(400):
                while (line := await lines.next()) is not None:
                    answer = decode_answer(line)
                    page([answer])
                    row(answer)
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    lines = [encode_line(each) for each in ASKED]
    return lines * 2 + [
        b"".join(lines[:4]),
        b"\n\n",
        b"{}\n",
        lines[0] * 20,
        b"x" * 5_000 + b"\n",
        b'{"do":"ping","count":9,"interval_s":0.01}\n',
    ]


MACHINES = [Machine("control", corpus, _Control, length=60)]
