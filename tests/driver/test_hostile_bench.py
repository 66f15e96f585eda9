"""What a peer answers to a measurement ends the measurement at worst, with the one exception that is foreseen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.driver.fake_link import FakeStream, linked_pair
from tunnel.cli.bench import row
from tunnel.control.messages import decode_answer, encode_line
from tunnel.errors import UnreachableError
from tunnel.ports.bench import GRACE, measure
from tunnel.ports.open import Opened, encode
from tunnel.shell.stream import StreamCode

SECONDS = 1.0


def measured(*fields: object) -> bytes:
    body = msgspec.msgpack.encode(("measured", *fields))
    return len(body).to_bytes(2, "big") + body


async def measure_with(answer: Any) -> list[str]:
    """The rows that a person reads; `answer(stream, number)` is the other side of the transfer of that number."""
    near, far = linked_pair()
    link: Any = near
    link.status = lambda: SimpleNamespace(kind="direct", remote="x", mtu=1472, why="", packets_sent=1, packets_lost=0)

    async def ping() -> float:
        await trio.sleep(0.01)
        return 0.01

    link.ping = ping
    near.flows.backlog = 1  # so that time passes
    rows: list[str] = []
    count = 0

    async def say(result: dict[str, Any]) -> None:
        rows.append(row(decode_answer(encode_line({"event": "bench", "peer": "home", **result}))))

    async def handle(stream: FakeStream) -> None:
        nonlocal count
        count += 1
        await answer(stream, count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, handle)
        problem: UnreachableError | None = None
        try:
            await measure(link, SECONDS, say)
        except UnreachableError as error:
            problem = error
        nursery.cancel_scope.cancel()
    if problem is not None:
        rows.append(str(problem))
    return rows


@pytest.mark.parametrize(
    "fields", [(1, 1, 5e-324), (1, 1, float("inf")), (1, 1, float("nan")), (2**63, 1, 0.1), (1, 2**63, 0.1), (1, 1, None)]
)
@pytest.mark.parametrize("liar", [1, 2, 3, 4])
async def test_figures_that_nobody_can_have_measured_end_the_measurement(
    autojump_clock: trio.testing.MockClock, fields: tuple[object, ...], liar: int
) -> None:
    async def answer(stream: FakeStream, number: int) -> None:
        await stream.send_all(encode(Opened()))
        while number in (1, 3) and await stream.receive_chunks():  # noqa: ASYNC110  # a sink counts until the other side's end
            await trio.sleep(0.05)
        await stream.send_all(measured(*fields) if number == liar else measured(1000, 10, 0.5))
        stream.finish()

    rows = await measure_with(answer)
    if liar == 2:  # what came down is measured here
        assert len(rows) == 6
    else:
        assert len(rows) == 2 + liar
        assert rows[-1] == "The other side cut the measurement short."


@pytest.mark.parametrize("act", ["refuse", "reset", "stop", "nothing", "silence"])
async def test_a_peer_that_does_not_take_part_is_said_to_and_raises_no_group(
    autojump_clock: trio.testing.MockClock, act: str
) -> None:
    """A group of exceptions is not what the control socket expects of a measurement."""

    async def answer(stream: FakeStream, _number: int) -> None:
        if act == "refuse":
            stream.reset(StreamCode.DENIED)
            return
        if act == "silence":
            await trio.sleep_forever()
        await stream.send_all(encode(Opened()))
        await trio.sleep(0.1)
        if act == "reset":
            stream.reset(StreamCode.INTERNAL)
        elif act == "stop":
            stream.stop(StreamCode.CANCELLED)

    begun = trio.current_time()
    rows = await measure_with(answer)
    assert trio.current_time() - begun < 3 * (SECONDS + GRACE) + 15
    ending = {
        "refuse": "home measures no more now: another measurement runs, or an hour's share is used.",
        "silence": "home does not answer: its ptunnel may be older than this one.",
    }
    assert rows[-1] == ending.get(act, "The other side cut the measurement short.")
