"""What is told of connections is bounded, and what is not told one by one is told as a sum; in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tunnel.ports.access import MAX_ACCESSES, WINDOW, Access, AccessLog, ConnectionReport, ConnectionsReport, Report


class Teller:
    def __init__(self) -> None:
        self.told: list[Report] = []
        self.log = AccessLog(self.told.append)

    def use(self, peer: str, count: int, *, sent: int = 0) -> None:
        for _ in range(count):
            access = self.log.access(peer, "tcp/22")
            access.opened()
            access.sent += sent
            access.closed()

    def of(self, peer: str) -> list[Report]:
        return [report for report in self.told if report.peer == peer]


async def test_a_connection_is_told_when_it_opens_and_when_it_has_closed(autojump_clock: MockClock) -> None:
    teller = Teller()
    access = teller.log.access("friend", "tcp/22")
    access.opened()
    access.sent += 1_000
    access.received += 7
    await trio.sleep(180)
    access.closed()
    assert [report.to_dict() for report in teller.told] == [
        {"event": "connection", "peer": "friend", "target": "tcp/22", "state": "open", "number": 1},
        {
            "event": "connection", "peer": "friend", "target": "tcp/22", "state": "closed", "number": 1,
            "duration_s": 180.0, "sent_bytes": 1_000, "received_bytes": 7,
        },
    ]  # fmt: skip


async def test_one_that_never_opened_is_told_by_its_refusal_alone() -> None:
    teller = Teller()
    teller.log.access("friend", "tcp/22").closed()
    Access().closed()
    assert teller.told == []


@pytest.mark.parametrize("others", [0, 3])
async def test_a_flood_of_connections_is_counted_and_told_as_a_sum_when_the_minute_is_over(
    autojump_clock: MockClock, others: int
) -> None:
    teller = Teller()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(teller.log.run)
        await trio.testing.wait_all_tasks_blocked()
        teller.use("friend", 10_000, sent=5)
        teller.use("ben", others)
        assert len(teller.of("friend")) == MAX_ACCESSES
        assert len(teller.of("ben")) == 2 * others, "a flood hides nobody else"
        await trio.sleep(WINDOW + 1)
        left = 10_000 - MAX_ACCESSES // 2
        sums = [report for report in teller.told if isinstance(report, ConnectionsReport)]
        assert sums == [ConnectionsReport(peer="friend", opened=left, closed=left, sent_bytes=5 * left, received_bytes=0)]
        teller.use("friend", 1)
        assert isinstance(teller.told[-1], ConnectionReport), "the next minute is a new one"
        await trio.sleep(100 * WINDOW)
        assert len(teller.told) == MAX_ACCESSES + 2 * others + 1 + 2
        nursery.cancel_scope.cancel()


async def test_what_was_not_told_is_told_when_the_command_ends(autojump_clock: MockClock) -> None:
    teller = Teller()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(teller.log.run)
        teller.use("friend", MAX_ACCESSES)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    left = MAX_ACCESSES // 2
    assert teller.told[-1] == ConnectionsReport(peer="friend", opened=left, closed=left, sent_bytes=0, received_bytes=0)
