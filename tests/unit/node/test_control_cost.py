"""A message on the control stream costs its bytes, as a frame does; and a PONG is an answer, not a guess."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.sim.cast import Cast, Three
from tests.unit.connection.test_frame_cost import MOST_A_BYTE
from tests.work import instructions
from tunnel.nat.candidate import MAX_CANDIDATES, CandidateKind, Offer, encode_offer, make_candidate
from tunnel.node import peering as peerings
from tunnel.node.hybrid import CONTROL_KEM_KEPT, CONTROL_KEM_KEY, CONTROL_KEM_TEXT
from tunnel.node.peering import (
    CONTROL_HELLO,
    CONTROL_OFFER,
    CONTROL_PING,
    CONTROL_PONG,
    CONTROL_ROOM,
    CONTROL_SERVER,
    CONTROL_SHARES,
)
from tunnel.node.pings import MAX_PONGS
from tunnel.node.relays import CONTROL_RELAYS, HAVE, LET_GO, MAX_SAID, OPEN, encode_have
from tunnel.transport.connection.control import frame
from tunnel.transport.crypto.kem import TEXT_SIZE, KemKey
from tunnel.transport.stream.streams import CONTROL_STREAM
from tunnel.units import Address, SocketId

UNKNOWN: Final = 0x63
FULL: Final = 1_100  # bytes of messages in one go


def offer(number: int, candidates: int, *, opened: bool = False) -> bytes:
    """Later than any before, with new addresses each time."""
    named = (Address(f"45.9.{number % 200}.{place + 1}", 2_000 + place) for place in range(candidates))
    found = tuple(make_candidate(CandidateKind.SERVER_REFLEXIVE, address, SocketId(0)) for address in named)
    return bytes((CONTROL_OFFER,)) + encode_offer(Offer(1_000 + number, found, opened=opened))


def with_token(kind: int) -> Callable[[int], bytes]:
    return lambda number: bytes((kind,)) + number.to_bytes(8, "big")


ROWS: Final[dict[int, dict[str, Callable[[int], bytes]]]] = {
    CONTROL_HELLO: {"hello": lambda _: bytes((CONTROL_HELLO,))},
    CONTROL_OFFER: {
        "an offer of nothing": lambda number: offer(number, 0),
        "a notice": lambda number: offer(number, 0, opened=True),
        "an offer of one address": lambda number: offer(number, 1),
        "an offer of all it may hold": lambda number: offer(number, MAX_CANDIDATES),
        "an offer cut short": lambda _: bytes((CONTROL_OFFER, 1)),
    },
    CONTROL_PING: {"ping": with_token(CONTROL_PING)},
    CONTROL_PONG: {"pong": with_token(CONTROL_PONG)},
    CONTROL_ROOM: {"about a room": lambda _: bytes((CONTROL_ROOM,))},
    CONTROL_KEM_KEY: {
        "a key": lambda number: bytes((CONTROL_KEM_KEY, 0)) + KemKey(random.Random(number).randbytes).public,
        "a key that is none": lambda _: bytes((CONTROL_KEM_KEY, 0)) + bytes(100),
    },
    CONTROL_KEM_TEXT: {"a ciphertext that nobody asked for": lambda _: bytes((CONTROL_KEM_TEXT, 0)) + bytes(TEXT_SIZE)},
    CONTROL_KEM_KEPT: {"kept": lambda _: bytes((CONTROL_KEM_KEPT,))},
    CONTROL_SERVER: {"where its server is": lambda _: bytes((CONTROL_SERVER,)) + b"192.0.2.1:24531"},
    CONTROL_SHARES: {"what may be reached": lambda _: bytes((CONTROL_SHARES,))},
    CONTROL_RELAYS: {
        "servers that answer": lambda number: encode_have(dict.fromkeys(range(MAX_SAID), number / 10000.0)),
        "a channel elsewhere": lambda number: bytes((CONTROL_RELAYS, OPEN)) + with_token(0xC0)(number) + bytes(24),
        "an offer to let go": lambda number: bytes((CONTROL_RELAYS, LET_GO)) + number.to_bytes(16, "big"),
        "no list of servers": lambda _: bytes((CONTROL_RELAYS, HAVE, 1)),
    },
    UNKNOWN: {"of a later version": lambda _: bytes((UNKNOWN,)), "empty": lambda _: b""},
}


def test_every_kind_of_message_has_a_row() -> None:
    assert set(ROWS) == {value for name, value in vars(peerings).items() if name.startswith("CONTROL_")} | {UNKNOWN}


@pytest.mark.parametrize("row", [name for rows in ROWS.values() for name in rows])
def test_a_message_costs_its_bytes(row: str) -> None:
    make = next(rows[row] for rows in ROWS.values() if row in rows)
    with Three() as three:
        friend, _ = three.meet_both()
        three.world.run(2.0)
        connection, path = friend.connection, three.at_home("friend").connection
        assert connection is not None
        assert path is not None
        body = b"".join(frame(make(number)) for number in range(max(1, FULL // len(frame(make(0))))))
        assert connection.stream_write(CONTROL_STREAM, body) == len(body)
        datagrams: list[bytes] = []
        out, now, home = bytearray(65_536), three.world.now, three.home.endpoint
        while (transmit := connection.poll_transmit(now, out)) is not None:
            data, size = bytes(transmit.buffer), transmit.segment_size
            datagrams.extend(data[at : at + size] for at in range(0, len(data), size))
        key = path.current_path.key

        def deliver() -> None:
            for datagram in datagrams:
                home.handle_batch(now, key.socket_id, key.remote, memoryview(datagram), len(datagram))
                while home.poll_transmit(now, out) is not None:
                    pass
                while home.poll_event(now) is not None:
                    pass

        assert instructions(deliver) / sum(map(len, datagrams)) < MOST_A_BYTE
        assert not friend.is_closed


def test_a_pong_before_its_ping_is_no_answer() -> None:
    with Cast() as party:
        friend = party.pair()
        home = next(iter(party.home.endpoint.peerings))
        assert home.connection is not None
        for number in range(1_000):  # whatever is asked next
            home.connection.send_control(with_token(CONTROL_PONG)(number))
        party.world.touch(party.home.host)
        party.world.run(1.0)
        assert not friend.pings.answers
        assert party.friend.endpoint.drops["pong that nobody asked for"] == 1_000
        asked = [friend.send_ping() for _ in range(8)]
        assert len(set(asked)) == len(asked)
        assert min(asked)[:4] > bytes(4)
        assert not friend.pings.answers
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        assert set(friend.pings.answers) == set(asked)


def test_pings_that_nobody_answers_or_fetches_are_bounded() -> None:
    with Cast() as party:
        friend = party.pair()
        for _ in range(3 * MAX_PONGS):
            friend.send_ping()
        assert len(friend.pings._asked) == MAX_PONGS
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        assert len(friend.pings.answers) == MAX_PONGS
