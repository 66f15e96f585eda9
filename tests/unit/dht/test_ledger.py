from __future__ import annotations

import pytest

from tunnel.dht.ledger import (
    MAX_HOSTS,
    MAX_IN_WINDOW,
    MAX_UNANSWERED,
    MIN_PORT,
    NETWORK_SHARE,
    UNANSWERED_LIFETIME,
    WINDOW,
    Ledger,
    is_target,
)
from tunnel.units import Address, Instant

START = Instant(100.0)
HOST = "44.1.2.3"


def test_a_host_that_never_answers_gets_few_datagrams() -> None:
    ledger = Ledger()
    sent = sum(ledger.take(Instant(START + each), HOST) for each in range(300))
    assert sent == MAX_UNANSWERED
    assert ledger.take(Instant(START + 300 + UNANSWERED_LIFETIME), HOST)


def test_a_host_that_answers_gets_no_more_than_it_bears() -> None:
    ledger = Ledger()
    sent = 0
    for _ in range(200):
        sent += ledger.take(START, HOST)
        ledger.answered(HOST)
    assert sent == MAX_IN_WINDOW
    assert ledger.take(Instant(START + WINDOW), HOST)


def test_the_hosts_that_are_remembered_have_an_end() -> None:
    ledger = Ledger()
    for number in range(2 * MAX_HOSTS):
        ledger.take(START, f"44.{number >> 8}.{number & 255}.1")
    assert len(ledger) == MAX_HOSTS


@pytest.mark.parametrize(
    ("source", "target", "may_be_sent_to"),
    [
        ("44.1.2.3", Address("44.9.9.9", 6881), True),
        ("44.1.2.3", Address("44.9.9.9", MIN_PORT - 1), False),
        ("44.1.2.3", Address("192.168.1.1", 6881), False),
        ("192.168.1.9", Address("192.168.1.1", 6881), True),
        ("44.1.2.3", Address("127.0.0.1", 6881), False),
        ("127.0.0.1", Address("127.0.0.1", 6881), True),
        ("192.168.1.9", Address("169.254.169.254", 6881), False),
        ("44.1.2.3", Address("224.0.0.1", 6881), False),
        ("3fff::1", Address("fe80::1", 6881), False),
        ("3fff::1", Address("3fff::2", 6881), True),
    ],
)
def test_a_node_names_no_service_and_nothing_of_our_own_network(source: str, target: Address, may_be_sent_to: bool) -> None:
    assert is_target(Address(source, 6881), target) is may_be_sent_to


def test_a_network_gets_no_more_than_a_few_hosts_would() -> None:
    ledger = Ledger()
    count = sum(ledger.take(START, f"45.9.9.{host}") for host in range(256) for _ in range(MAX_UNANSWERED))
    assert count == NETWORK_SHARE * MAX_UNANSWERED
    assert ledger.take(START, "45.9.10.1")
    ledger.answered("45.9.9.0")  # gives back what went there, and no more
    count = sum(ledger.take(START, f"45.9.9.{host}") for host in range(1, 256) for _ in range(MAX_UNANSWERED))
    assert count == MAX_UNANSWERED
    assert ledger.take(Instant(START + UNANSWERED_LIFETIME), "45.9.9.9")
