"""When handshake datagrams are sent, repeated and given up."""

from __future__ import annotations

import random
from itertools import count, pairwise
from types import SimpleNamespace
from typing import cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.core.trace import Drops
from tunnel.node.context import Context
from tunnel.node.handshakes import FINISH_ATTEMPTS, INITS_UNQUESTIONED, MAX_CHALLENGED, Gatekeeper, InitiatorHandshake
from tunnel.transport.crypto.challenge import Challenge
from tunnel.transport.crypto.handshake import Initiator, Pattern, XxResponder, ik_prologue, open_ik_init
from tunnel.transport.crypto.params import Params
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

PSK = bytes(range(32))
NOW = Instant(50.0)
PATH = PathKey(SocketId(0), Address("192.88.99.1", 24_531), b"\xc0relayed")
OTHER = PathKey(SocketId(0), Address("192.88.99.2", 24_531), b"\xc0relayee")
ENTROPY = random.Random(1).randbytes
FRIEND, HOME = (X25519PrivateKey.from_private_bytes(bytes((number,)) * 32) for number in (1, 2))
HOME_PUBLIC = HOME.public_key().public_bytes_raw()


def params(instance: int) -> Params:
    return Params(instance=instance, name="x", aeads=(1, 2), receive_buffer=65_536)


def begin(pattern: Pattern, give_up_after: Seconds | None = None) -> InitiatorHandshake:
    clock = count(1)
    initiator = Initiator(
        pattern,
        static=FRIEND,
        remote_static=HOME_PUBLIC if pattern is Pattern.IK else None,
        psk=PSK,
        prologue=ik_prologue() if pattern is Pattern.IK else b"xx",
        index=7,
        params=params(1),
        entropy=ENTROPY,
    )
    context = cast(Context, SimpleNamespace(timestamp=lambda: next(clock), rng=random.Random(2), drops=Drops()))
    return InitiatorHandshake(context, initiator, PATH, NOW, give_up_after=give_up_after)


def sent_at(handshake: InitiatorHandshake, duration: float) -> list[tuple[float, bytes]]:
    """Run it alone for a while."""
    sent = []
    while (at := handshake.poll_timeout()) is not None and at <= NOW + duration:
        handshake.handle_timeout(at)
        datagram = handshake.poll_transmit(at)
        if datagram is not None:
            sent.append((at - NOW, datagram))
    return sent


def test_an_ik_init_is_a_fresh_one_each_time_half_a_second_doubling_to_five() -> None:
    sent = sent_at(begin(Pattern.IK), 40)
    waits = [later[0] - earlier[0] for earlier, later in pairwise(sent)]
    assert len({datagram for _, datagram in sent}) == len(sent)
    for wait, nominal in zip(waits, [0.5, 1, 2, 4, 5, 5], strict=False):
        assert nominal <= wait <= 1.1 * nominal


def test_an_xx_init_is_the_same_bytes_again() -> None:
    sent = sent_at(begin(Pattern.XX), 10)
    assert len(sent) > 8
    assert len({datagram for _, datagram in sent}) == 1


def test_it_gives_up_when_told_to_and_not_before() -> None:
    handshake = begin(Pattern.IK, Seconds(3.0))
    assert all(at < 3.0 for at, _ in sent_at(handshake, 100))
    assert handshake.has_failed
    assert handshake.is_over
    patient = begin(Pattern.IK)
    sent_at(patient, 1000)
    assert not patient.has_failed


def test_another_path_is_tried_at_once() -> None:
    handshake = begin(Pattern.IK)
    sent_at(handshake, 4)
    handshake.move(Instant(NOW + 4.1), OTHER)
    assert handshake.poll_timeout() == NOW + 4.1
    assert handshake.path == OTHER


def test_the_answer_to_an_earlier_init_still_counts() -> None:
    handshake = begin(Pattern.IK)
    first, second = (datagram for _, datagram in sent_at(handshake, 0.6))
    opened = open_ik_init(first, HOME, ik_prologue(), ENTROPY)
    response, theirs = opened.respond(PSK, 9, params(2))
    assert second != first
    assert handshake.handle_datagram(Instant(NOW + 0.7), b"\x71" + bytes(200)) is None
    completed = handshake.handle_datagram(Instant(NOW + 0.7), response)
    assert completed is not None
    assert completed.pair_psk == theirs.pair_psk
    assert handshake.poll_timeout() is None


def test_a_finish_is_repeated_until_the_peer_has_spoken() -> None:
    handshake = begin(Pattern.XX)
    [(_, init)] = sent_at(handshake, 0.1)
    responder = XxResponder(static=HOME, psk=PSK, prologue=b"xx", index=9, params=params(2), entropy=ENTROPY)
    completed = handshake.handle_datagram(NOW, responder.handle_init(init))
    assert completed is not None
    first = handshake.poll_transmit(NOW)
    assert first is not None
    assert first == completed.finish
    assert responder.handle_finish(first).remote_static == FRIEND.public_key().public_bytes_raw()
    again = sent_at(handshake, 20)
    assert len(again) == FINISH_ATTEMPTS - 1
    assert {datagram for _, datagram in again} == {first}
    assert handshake.is_over


def test_so_many_inits_leave_at_once_because_of_challenges_and_then_they_wait_for_their_turn() -> None:
    handshake = begin(Pattern.IK)
    [(_, init)] = sent_at(handshake, 0.1)
    asked = 0
    for number in range(MAX_CHALLENGED + 3):
        now = Instant(NOW + 0.1 + 0.001 * number)
        opened = open_ik_init(init, HOME, ik_prologue(), ENTROPY)
        handshake.handle_datagram(now, opened.challenge(Challenge(bytes((number,)) * 16, 0), ENTROPY))
        handshake.handle_timeout(now)
        again = handshake.poll_transmit(now)
        if again is None:
            break
        init, asked = again, asked + 1
    assert asked == MAX_CHALLENGED
    waits = handshake.poll_timeout()
    assert waits is not None
    assert waits > NOW + 0.5


def test_under_load_an_init_needs_a_cookie_and_the_initiator_brings_one() -> None:
    gate = Gatekeeper(HOME_PUBLIC, ENTROPY)
    handshake = begin(Pattern.IK)
    sender = Address("192.88.99.7", 4000)
    [(_, init)] = sent_at(handshake, 0.1)
    reasons = [gate.check(NOW, init, sender)[0] for _ in range(INITS_UNQUESTIONED + 50)]
    assert reasons == [""] * INITS_UNQUESTIONED + ["init without a cookie under load"] * 50
    reply = gate.check(NOW, init, sender)[1]
    assert reply is not None
    assert len(reply) < len(init)
    assert handshake.handle_datagram(NOW, reply) is None
    [(_, second)] = sent_at(handshake, 0.6)
    assert gate.check(NOW, second, sender) == ("", None)
    assert gate.check(NOW, second, Address("192.88.99.8", 4000))[0] != ""
    assert gate.check(NOW, bytes(len(init)), sender) == ("init with a wrong mac1", None)
