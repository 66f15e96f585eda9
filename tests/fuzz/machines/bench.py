"""`ptunnel bench` against a peer that answers anything, and streams that open with anything, through to what a person reads."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import trio
from trio.testing import MockClock

from tests.driver.fake_link import FakeStream, linked_pair
from tests.fuzz.engine import Machine
from tests.fuzz.machines.decoders import OPENINGS
from tunnel.cli.bench import row
from tunnel.control.messages import decode_answer, encode_line
from tunnel.errors import UnreachableError
from tunnel.ports.bench import Allowance, measure
from tunnel.ports.counters import NOTICE_INTERVAL
from tunnel.ports.open import Measured, Opened, encode
from tunnel.ports.serve import Exposed
from tunnel.shell.stream import StreamCode, StreamResetError, StreamStoppedError

SECONDS = 0.1
AGREED = 1 + len(encode(Opened()))  # bytes of an answer up to the agreement


class _Evil:
    """The other side of a link: what it says to each question, byte for byte."""

    def __init__(self, said: list[bytes]) -> None:
        self.near, self.far = linked_pair()
        self.near.flows.backlog = 1  # so that time passes while datagrams are sent
        self.said = said
        self.near.status = self._status  # type: ignore[attr-defined]
        self.near.ping = self._ping  # type: ignore[attr-defined]

    @staticmethod
    def _status() -> Any:
        return SimpleNamespace(kind="direct", remote="198.51.100.7:4500", mtu=1472, why="", packets_sent=10, packets_lost=1)

    @staticmethod
    async def _ping() -> float:
        await trio.sleep(0.01)
        return 0.01

    async def answer(self, stream: FakeStream) -> None:
        said = self.said.pop(0) if self.said else b""
        try:
            if said[:1] == b"R":
                stream.reset(said[1] if len(said) > 1 else StreamCode.DENIED)
                return
            await stream.send_all(said[1:AGREED])
            await trio.sleep(1.5 * SECONDS)  # as long as a transfer: what a sink has counted comes behind it
            await stream.send_all(said[AGREED:])
            if said[:1] == b"F":
                stream.finish()
            elif said[:1] == b"S":
                stream.stop(StreamCode.CANCELLED)
            elif said[:1] == b"T":
                stream.reset(StreamCode.INTERNAL)
            for flow in list(self.near.flows.callbacks):
                self.far.flows.send(flow, [said] * 3)
        except (UnreachableError, StreamStoppedError, StreamResetError):
            pass  # the measurement ended before


class _Bench:
    """Inputs: the answers to the four transfers, split at 0xFE; or a stream's first bytes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def feed(self, data: bytes) -> None:
        if data:
            trio.run(self._measure if data[0] & 1 else self._serve, data[1:], clock=MockClock(autojump_threshold=0))

    async def _measure(self, data: bytes) -> None:
        evil = _Evil(data.split(b"\xfe"))

        async def say(result: dict[str, Any]) -> None:
            line = encode_line({"event": "bench", "peer": "home", **result})
            said = row(decode_answer(line))
            assert said.isprintable()
            assert not said.startswith("{"), f"a result that no row shows: {said}"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(evil.far.serve_streams, evil.answer)
            with contextlib.suppress(UnreachableError):
                await measure(evil.near, SECONDS, say)
            nursery.cancel_scope.cancel()

    async def _serve(self, data: bytes) -> None:
        near, far = linked_pair()
        told: list[str] = []
        exposed = Exposed(far, lambda _protocol, _target: None, notice=told.append, allowance=Allowance(trio.current_time))
        rng = random.Random(self.seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, exposed.handle)
            stream = await near.open_stream(data[:7])
            await trio.sleep(rng.random() * 2)
            try:
                await stream.send_all(data[7:])
                if rng.random() < 0.5:
                    stream.finish()
            except (UnreachableError, StreamStoppedError, StreamResetError):
                pass  # refused
            await trio.sleep(NOTICE_INTERVAL * 4)
            nursery.cancel_scope.cancel()
        assert all(text.isprintable() for text in told)

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    opened = encode(Opened())

    def measured(*fields: object) -> bytes:
        body = msgspec.msgpack.encode(("measured", *fields))
        return len(body).to_bytes(2, "big") + body

    good = [encode(Measured(10**6, 800, 0.1)), encode(Measured(1, 1, 1e-6)), encode(Measured(0, 0, 0.0))]
    bad = [measured(1, 1, each) for each in (5e-324, float("inf"), float("nan"), -1.0, 1e308, None)]
    bad += [measured(2**63, 1, 0.1), measured(1, 2**63, 0.1), measured(-1, 1, 0.1)]
    found = [b"\1" + b"\xfe".join((b"F" + opened + each,) * 4) for each in (*good, *bad)]
    found += [
        b"\1"
        + b"\xfe".join((b"F" + opened + good[0], b"F" + opened + bytes(5_000), b"F" + opened + good[1], b"F" + opened + good[0]))
    ]
    found += [b"\1R\3", b"\1F", *(b"\1" + kind + opened for kind in (b"X", b"S", b"T"))]
    return found * 2 + [b"\0" + encode(each) + bytes(100) for each in OPENINGS]


MACHINES = [Machine("bench", corpus, _Bench, length=40)]
