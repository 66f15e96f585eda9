"""Which flow goes where there are too many."""

from __future__ import annotations

import socket
from typing import Any

from tunnel.ports.counters import ForwardCounters
from tunnel.ports.flows import LASTING_PART, LOOKUP_DATAGRAMS, MAX_FLOWS, Flow, FlowTable
from tunnel.ports.names import Place


class Scope:
    """That of a task."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Table:
    """A table, and flows by name."""

    def __init__(self, limit: int = MAX_FLOWS) -> None:
        self.counters = ForwardCounters()
        self.table = FlowTable(self.counters, limit=limit)
        self.flows: dict[Any, Flow] = {}

    def start(self, name: Any, datagrams: int = LOOKUP_DATAGRAMS) -> Flow:
        flow = self.flows[name] = Flow(len(self.flows))
        flow.scope = Scope()  # type: ignore[assignment]
        self.table.add(name, flow)
        flow.touch(datagrams)
        return flow

    def is_there(self, name: Any) -> bool:
        is_cancelled: bool = self.flows[name].scope.is_cancelled  # type: ignore[attr-defined]
        assert is_cancelled != (self.table.get(name) is self.flows[name])
        return not is_cancelled


def test_of_questions_and_answers_the_oldest_goes() -> None:
    table = Table(4)
    for number in range(7):
        table.start(number)
    assert [number for number in range(7) if table.is_there(number)] == [3, 4, 5, 6]
    table.flows[0].touch(10)  # it is told late
    assert (len(table.table), table.counters.udp_flows_evicted, table.counters.udp_flows_active) == (4, 3, 7)


def test_a_flow_that_pauses_outlives_any_number_of_questions() -> None:
    """A call in which nobody speaks, beside a resolver with a new port for each question."""
    table = Table()
    call = table.start("call", 1)
    for number in range(MAX_FLOWS // 2):
        table.start(number)
    call.touch(LOOKUP_DATAGRAMS)
    for number in range(MAX_FLOWS // 2, 20 * MAX_FLOWS):
        table.start(number)
    assert table.is_there("call")
    assert len(table.table) == MAX_FLOWS


def test_a_flow_that_speaks_outlives_any_number_of_lasting_ones() -> None:
    table = Table(64)
    game = table.start("game", 10)
    for number in range(1_000):
        game.touch(1)
        table.start(number, 10)
    assert table.is_there("game")
    assert len(table.table) == 64


def test_lasting_flows_leave_a_part_to_new_ones() -> None:
    """Else a new one had no time to become lasting."""
    table = Table()
    for number in range(MAX_FLOWS):
        table.start(number, 10)
    for number in range(MAX_FLOWS):
        table.start(f"new {number}")
    assert sum(table.is_there(number) for number in range(MAX_FLOWS)) == int(MAX_FLOWS * LASTING_PART)
    assert all(table.is_there(f"new {number}") for number in range(int(MAX_FLOWS * LASTING_PART), MAX_FLOWS))


def test_a_flow_that_ended_makes_room() -> None:
    table = Table(4)
    for number in range(4):
        table.start(number, 10 * (number % 2))
    for number in range(4):
        table.table.discard(number, table.flows[number])
        table.start(10 + number)
    assert table.counters.udp_flows_evicted == 0
    table.table.discard(3, table.flows[3])  # again, as of one that was evicted before
    assert len(table.table) == 4


def test_which_place_of_a_target_answered_is_remembered_of_as_many_targets_as_flows() -> None:
    table = FlowTable(ForwardCounters(), limit=8)
    for port in range(1, 100):
        places: list[Place] = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
        assert table.in_order(("localhost", port), places) == places
        table.answered(("localhost", port), places[1])
        assert table.in_order(("localhost", port), places) == places[::-1]
    assert len(table._answered) == 8
