"""What strangers and broken networks throw at an endpoint: nothing raises and nothing grows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.cast import Cast
from tests.sim.peers import FIRST
from tunnel.units import Address, Seconds, Transmit

STRANGER = Address("45.1.0.99", 4444)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=400), stride=st.integers(1, 400))
def test_any_bytes_from_a_stranger_are_dropped(data: bytes, stride: int) -> None:
    party = Cast()
    party.acquaint()
    party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(data), stride)
    party.home.endpoint.handle_timeout(party.world.now)


@pytest.mark.parametrize("kind", [0x40, 0x41, 0x42, 0x43, 0x69, 0x70, 0x71, 0x72, 0x73, 0x80, 0xBF, 0xC0, 0xFF])
def test_every_kind_of_datagram_may_be_cut_anywhere(kind: int) -> None:
    party = Cast()
    party.acquaint()
    rng = random.Random(kind)
    for length in range(1, 340):
        data = bytes((kind,)) + rng.randbytes(length - 1)
        party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(data), length)
        if length > 9:
            relayed = b"\xc0" + bytes(7) + data
            party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(relayed), len(relayed))


@pytest.mark.parametrize("seed", range(30))
def test_a_network_that_flips_bits_delays_but_does_not_break(seed: int) -> None:
    with Cast(seed=seed) as party:
        rng = random.Random(seed)
        for person in (party.home, party.friend):
            poll = person.poll_transmit

            def damaged(now: object, out: bytearray, poll: object = poll) -> Transmit | None:
                burst: Transmit | None = poll(now, out)  # type: ignore[operator]
                if burst is not None and rng.random() < 0.1:
                    spoilt = bytearray(burst.buffer)
                    spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
                    burst = burst._replace(buffer=memoryview(bytes(spoilt)))
                return burst

            person.poll_transmit = damaged  # type: ignore[method-assign]
        party.acquaint()
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None, 60)
        party.echoed(peering, b"hello" * 2000, 60)


def test_a_replayed_init_makes_nothing() -> None:
    with Cast() as party:
        party.acquaint()
        sent: list[bytes] = []

        def remember(sender: object, destination: object, datagram: bytes) -> bool:
            if len(datagram) > 8 and datagram[0] >= 0xC0 and datagram[8] == 0x70:
                sent.append(datagram)
            return True

        party.world.filter = remember
        peering = party.friend.dial(party.home)
        party.world.run_until(lambda: peering.connection is not None)
        party.echoed(peering, b"hello")
        assert sent
        before = party.home.endpoint.drops["init replayed"]
        party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(sent[0]), len(sent[0]))
        assert party.home.endpoint.drops["init replayed"] == before + 1
        party.world.suspend(party.friend.host, Seconds(1_000))
        party.home.boot()  # it has forgotten the timestamps
        party.home.meet(party.server)
        party.home.listen()
        party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(sent[0]), len(sent[0]))
        party.world.run(5.0)
        assert not party.home.peerings  # an answer went out, but nobody can use it


def test_a_flood_of_inits_is_asked_for_cookies_and_makes_no_state() -> None:
    with Cast() as party:
        party.acquaint()
        inits: list[bytes] = []

        def keep(sender: object, destination: object, datagram: bytes) -> bool:
            is_init = len(datagram) > 8 and datagram[0] >= 0xC0 and datagram[8] == 0x70
            if is_init:
                inits.append(datagram)
            return not is_init

        party.world.filter = keep
        party.friend.dial(party.home)
        party.world.run(2.0)
        assert inits
        for _ in range(500):
            party.home.endpoint.handle_batch(party.world.now, FIRST, STRANGER, memoryview(inits[0]), len(inits[0]))
        assert party.home.endpoint.drops["init without a cookie under load"] >= 400
        assert len(party.home.endpoint._meetings._responder.pending) <= 1
