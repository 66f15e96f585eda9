"""Which keypairs open and which one seals, when handshakes overtake or cross one another."""

from __future__ import annotations

import random

from tests.unit.connection.pair import Pair, keypairs
from tunnel.proto.connection.keyring import MAX_PENDING, OVERLAP, Keyring
from tunnel.units import Instant

NOW = Instant(100.0)


def test_a_newer_pending_keypair_survives_the_confirmation_of_an_older_one() -> None:
    pair = Pair()
    pair.run(0.5)
    first, second = keypairs(random.Random(1), base=300), keypairs(random.Random(2), base=400)
    stream = pair.a.open_stream()
    for key_a, key_b in (first, second):
        pair.b.install_keypair(pair.now, key_b, confirmed=False)
        pair.a.install_keypair(pair.now, key_a, confirmed=True)
        pair.a.stream_write(stream, b"x")
        pair.flush()  # the first is on its way while the second is agreed on
    pair.run(2)
    assert pair.read["b"][stream] == b"xx"
    pair.run(60)
    assert pair.a.indices() == (400,)
    assert pair.b.indices() == (401,)


def test_handshakes_that_cross_leave_both_sides_able_to_hear() -> None:
    pair = Pair()
    pair.run(0.5)
    one, two = keypairs(random.Random(1), base=300), keypairs(random.Random(2), base=400)
    pair.a.install_keypair(pair.now, two[0], confirmed=False)
    pair.b.install_keypair(pair.now, one[1], confirmed=False)
    pair.a.install_keypair(pair.now, one[0], confirmed=True)
    pair.b.install_keypair(pair.now, two[1], confirmed=True)
    stream = pair.a.open_stream()
    for number in range(1, 100):
        pair.a.stream_write(stream, b"x")
        pair.run(1)
        assert len(pair.read["b"][stream]) == number


def test_pending_keypairs_are_few_and_the_oldest_goes_first() -> None:
    made = [keypairs(random.Random(n), base=10 * n)[1] for n in range(1, 9)]
    ring = Keyring(made[0], NOW)
    for keypair in made[1:]:
        ring.install(keypair, NOW, confirmed=False)
    assert len(ring.by_index) == 1 + MAX_PENDING
    assert ring.current is made[0]
    assert ring.authenticated(made[-1], NOW)
    assert set(ring.by_index.values()) == {made[0], made[-1]}
    ring.expire(Instant(NOW + OVERLAP))
    assert set(ring.by_index.values()) == {made[-1]}
