"""EndpointDriver between two batches of a turn: what the first caused is told before the second is received, sent at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.driver.meeting import lone_driver
from tests.unit.connection.pair import Pair
from tunnel.node.events import PeeringEvent, PeeringStarted, Problem, Troubled
from tunnel.node.peering import Peering
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.hurry import BYTES_IN_A_HURRY
from tunnel.shell.link import Link
from tunnel.transport.connection.events import DatagramsReceived
from tunnel.units import Address, SocketId

SENDER = Address("198.51.100.1", 7)
SOCKET = SocketId(0)


class Turn:
    """A lone driver whose core does, for each batch, what the test says, and whose socket has these batches at once."""

    def __init__(self, driver: EndpointDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = driver
        self.log: list[str] = []
        self.causes: list[Callable[[], bool]] = []  # of each batch: whether anything follows from it
        self._events = driver.core._context.events
        monkeypatch.setattr(driver.core, "handle_batch", self._handle_batch)
        monkeypatch.setattr(driver.core, "poll_transmit", self._poll_transmit)
        driver.on_event = lambda event: self.log.append(event.text if isinstance(event, Troubled) else type(event).__name__)
        driver.after_events = lambda: self.log.append("after")

    def _handle_batch(self, *_: Any) -> bool:
        number = len([line for line in self.log if line.startswith("batch")])
        self.log.append(f"batch {number}")
        return self.causes[number]()

    def _poll_transmit(self, *_: Any) -> None:
        self.log.append("sent")

    def emit(self, *texts: str) -> Callable[[], bool]:
        def cause() -> bool:
            self._events.extend(Troubled(problem=Problem.PEER_LOST, text=text) for text in texts)
            return True

        return cause

    async def run(self) -> list[str]:
        """What happened from the arrival of the batches, each of one datagram, until all was quiet."""
        socket = cast("Any", self.driver._sockets[SOCKET])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.driver._run_socket, SOCKET)
            await trio.testing.wait_all_tasks_blocked()
            self.log.clear()
            network = socket._network
            sender = network.open_socket(SENDER.host, SENDER.port)
            for number in range(len(self.causes)):  # each longer than the last: no two are joined
                sender.send(socket.local_address, memoryview(bytes(number + 1)), number + 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return self.log


@asynccontextmanager
async def a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turn]:
    driver = lone_driver(tmp_path)
    yield Turn(driver, monkeypatch)
    driver.release()


async def test_what_a_batch_caused_is_told_in_order_before_the_next_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [turn.emit("a", "b"), turn.emit("c")]
        assert await turn.run() == ["batch 0", "a", "b", "after", "batch 1", "c", "after", "sent"]


async def test_a_batch_that_caused_no_event_is_followed_by_the_next_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no connection is asked: poll_event does that, so it is called at the end of the turn only."""
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [lambda: True, lambda: False]
        poll_event = turn.driver.core.poll_event

        def polled(now: Any) -> Any:
            turn.log.append("polled")
            return poll_event(now)

        monkeypatch.setattr(turn.driver.core, "poll_event", polled)
        assert await turn.run() == ["batch 0", "batch 1", "sent", "polled"]


async def test_a_handler_that_flushes_is_neither_entered_again_nor_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did to the core, a further event included, is told and sent before anybody else runs."""
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [turn.emit("a", "b"), lambda: False]
        heard = turn.driver.on_event
        assert heard is not None

        def handle(event: Any) -> None:
            heard(event)
            if event.text == "a":
                turn.emit("of a")()
                turn.driver.flush()
            turn.log.append(f"{event.text} done")

        turn.driver.on_event = handle
        told = ["a", "a done", "b", "b done", "of a", "of a done", "after"]
        assert await turn.run() == ["batch 0", *told, "batch 1", "sent"]
        turn.log.clear()
        turn.driver.flush()  # works as ever
        assert turn.log == ["sent"]


async def test_what_comes_of_the_end_of_the_events_is_told_with_the_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [turn.emit("a")]

        def after() -> None:  # as a room does, which dials and says so
            turn.log.append("after")
            if turn.log.count("after") == 1:
                turn.emit("of after")()
                turn.driver.flush()

        turn.driver.after_events = after
        assert await turn.run() == ["batch 0", "a", "after", "sent", "of after", "after", "sent"]


async def test_a_handler_that_fails_leaves_a_driver_that_can_still_say_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [turn.emit("a")]

        def fail(_: object) -> None:
            raise ValueError("a bug")

        turn.driver.on_event = fail
        assert await turn.run() == ["batch 0", "after", "sent"]
        assert turn.driver.faults.counts == {"events": 1}
        turn.log.clear()
        turn.driver.on_event = None
        turn.driver.close("the end")
        assert turn.log == ["sent"]


async def test_a_handler_that_closes_the_socket_ends_its_task_behind_the_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.causes = [turn.emit("a"), turn.emit("never received")]
        heard = turn.driver.on_event
        assert heard is not None

        def close(event: Any) -> None:
            heard(event)
            turn.driver._sockets.pop(SOCKET).close()  # as the pool does
            turn.driver.flush()

        turn.driver.on_event = close
        assert await turn.run() == ["batch 0", "a", "after", "sent"]


async def test_a_peering_has_its_link_before_what_the_same_batch_brought_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the first batch brought is handed on before the second: each delivery is of one batch."""
    async with a_turn(tmp_path, monkeypatch) as turn:
        pair = Pair(seed=1, relayed=False)
        flows: list[int] = []

        class Known:
            static = bytes(32)
            name = "friend"

        class Started:
            peer = Known()
            is_initiator = True
            connection: Any = pair.a

        peering = cast("Peering", Started())
        events = turn.driver.core._context.events

        def arrive(*before: Any) -> Callable[[], bool]:
            def cause() -> bool:
                pair.a._shared.received_datagrams.append((2, b"x"))
                events.extend([*before, PeeringEvent(peering, DatagramsReceived())])
                return True

            return cause

        def linked(link: Link) -> None:
            turn.log.append("linked")
            link.flows.register(2, lambda batch: flows.append(len(batch)))

        turn.driver.on_link = linked
        turn.driver.after_events = None
        turn.causes = [arrive(PeeringStarted(peering=peering)), arrive()]
        assert await turn.run() == [
            *("batch 0", "linked", "PeeringStarted", "PeeringEvent"),
            *("batch 1", "PeeringEvent", "sent"),
        ]
        assert flows == [1, 1]


@pytest.mark.parametrize(("most", "sent"), [(BYTES_IN_A_HURRY, 1), (1, 2)])
async def test_in_a_hurry_bulk_ends_a_turn_at_once_and_a_few_bytes_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, sent: int
) -> None:
    monkeypatch.setattr("tunnel.shell.endpoint.BYTES_IN_A_HURRY", most)
    async with a_turn(tmp_path, monkeypatch) as turn:
        turn.driver._hurry()
        monkeypatch.setattr(turn.driver._hurry, "until", float("inf"))
        turn.causes = [turn.emit("a"), turn.emit("b")]
        assert (await turn.run()).count("sent") == sent
