"""Asks everybody, as an endpoint does not: whoever has something to send or to tell, or another deadline, has to be known for it.

While a test runs under `asking_everybody`, endpoints that have run dry are checked against all their peerings, one time in a few:
who was forgotten is so the next time too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

import pytest

from tunnel.node.endpoint import Endpoint
from tunnel.node.events import EndpointEvent
from tunnel.node.peering import Peering
from tunnel.transport.connection.connection import Connection
from tunnel.units import Instant, Transmit

EVERY: Final = 4  # times; all questions of every time took an eighth of the time of the simulations
_times = count()


def may_ask() -> bool:
    """Not while instructions are counted, to which the questions would be added."""
    return next(_times) % EVERY == 0 and sys.gettrace() is None


def connections(endpoint: Endpoint) -> Iterator[tuple[Peering, Connection]]:
    for peering in endpoint._meetings.peerings.all:
        if peering.connection is not None:
            yield peering, peering.connection


def check_sending(endpoint: Endpoint, now: Instant) -> None:
    out = bytearray(65_536)
    for peering, connection in connections(endpoint):
        sender = connection._sender
        if sender.blocked and sender.pacing_until is not None:
            continue  # it waits for its pacer, and would send less than a quantum if it were asked
        assert connection.poll_transmit(now, out) is None, f"{peering.peer.name} has something to send, and stands in no queue"


def check_telling(endpoint: Endpoint) -> None:
    for peering, connection in connections(endpoint):
        if not connection._said_closed:
            assert not connection._shared.events, f"{peering.peer.name} has something to tell, and stands in no queue"


def check_deadlines(endpoint: Endpoint) -> None:
    for peering in endpoint._meetings.peerings.all:
        known = peering.entry.at
        fault = peering._fault
        asked = peering.poll_timeout()
        if peering._fault is not fault:  # a test has broken it
            peering._fault = fault
            continue
        assert known == asked, f"{peering.peer.name} is due at {asked}, and known for {known}"
    asked, known = endpoint._meetings._poll_timeout(), endpoint._context.control.at
    assert known == asked, f"the meetings are due at {asked}, and known for {known}"


@contextmanager
def asking_everybody() -> Iterator[None]:
    poll_transmit, poll_event, poll_timeout = Endpoint.poll_transmit, Endpoint.poll_event, Endpoint.poll_timeout

    def transmit(self: Endpoint, now: Instant, out: bytearray) -> Transmit | None:
        burst = poll_transmit(self, now, out)
        if burst is None and may_ask():
            check_sending(self, now)
        return burst

    def event(self: Endpoint, now: Instant) -> EndpointEvent | None:
        told = poll_event(self, now)
        if told is None and may_ask():
            check_telling(self)
        return told

    def timeout(self: Endpoint) -> Instant | None:
        at = poll_timeout(self)
        if may_ask():
            check_deadlines(self)
        return at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "poll_transmit", transmit)
        patch.setattr(Endpoint, "poll_event", event)
        patch.setattr(Endpoint, "poll_timeout", timeout)
        yield
