"""One back-off a server: while it leaves requests unanswered, new ones wait as long as those that it has missed."""

from __future__ import annotations

from tunnel.rendezvous.addresses import MOST_STRETCHED, ServerAddress
from tunnel.units import Address, Instant, SocketId

NOW = Instant(1_000.0)


def server() -> ServerAddress:
    return ServerAddress(SocketId(0), Address("192.0.2.1", 24_531), NOW)


def test_a_server_that_is_behind_is_given_longer_and_an_answer_to_a_first_sending_ends_that() -> None:
    home = server()
    for attempts, stretch in ((1, 1), (2, 1), (3, 2), (4, 4), (2, 4), (9, MOST_STRETCHED), (30, MOST_STRETCHED)):
        home.on_missed(attempts)
        assert home.stretch == stretch
    home.on_answered(NOW, None)  # to a repeated one: it says little about how long the server takes now
    assert home.stretch == MOST_STRETCHED
    home.on_answered(NOW, Instant(NOW - 0.02))
    assert home.stretch == 1
