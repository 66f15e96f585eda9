from __future__ import annotations

from dataclasses import replace

import pytest

from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.challenge import SIZE, Challenge, receiver_of
from tunnel.transport.crypto.cookie import (
    SECRET_LIFETIME,
    CookieChecker,
    append_macs,
    consume_reply,
    mac1_key,
    mac1_of,
    reply_index,
    verify_mac1,
)
from tunnel.transport.crypto.handshake import (
    FINISH,
    Completed,
    Initiator,
    Pattern,
    XxResponder,
    ik_prologue,
    open_ik_init,
    pair_psk,
    parse_init,
    parse_response,
    xx_prologue,
)
from tunnel.transport.crypto.keys import AES_256_GCM, CHACHA20_POLY1305, choose_aead, preferred_aeads
from tunnel.transport.crypto.noise import NoiseError
from tunnel.transport.crypto.params import Params, decode_params, encode_params
from tunnel.units import Address, Instant

from .helpers import Entropy, private, public

PSK = b"k" * 32
HERE = Params(instance=11, name="friend", aeads=(1, 2), receive_buffer=212_992)
THERE = Params(instance=22, name="höme", aeads=(2, 1), receive_buffer=4_000_000, path_policy=2, resume=11)
REMOTE = Address("198.51.100.7", 41641)


def initiator(pattern: Pattern, psk: bytes = PSK, prologue: bytes = b"p", seed: int = 1) -> Initiator:
    return Initiator(
        pattern,
        static=private(b"i"),
        remote_static=public(b"r") if pattern is Pattern.IK else None,
        psk=psk,
        prologue=prologue,
        index=0xAAAA,
        params=HERE,
        entropy=Entropy(seed),
    )


def xx_responder(psk: bytes = PSK, prologue: bytes = b"p") -> XxResponder:
    return XxResponder(static=private(b"r"), psk=psk, prologue=prologue, index=0xBBBB, params=THERE, entropy=Entropy(2))


def seal_both_ways(a: Completed, b: Completed) -> None:
    for one, other in ((a.keypair, b.keypair), (b.keypair, a.keypair)):
        sealed = bytearray(7 + 16)
        one.send.encrypt_into(bytes(12), b"payload", b"aad", sealed)
        opened = bytearray(7)
        other.receive.decrypt_into(bytes(12), sealed, b"aad", opened)
        assert opened == b"payload"
        assert one.remote_index == other.local_index
        assert one.aead == other.aead
    assert a.pair_psk == b.pair_psk
    assert a.handshake_hash == b.handshake_hash
    assert a.keypair.is_initiator
    assert not b.keypair.is_initiator


def test_xx_introduces_two_strangers_who_share_a_psk() -> None:
    left, right = initiator(Pattern.XX), xx_responder()
    init = left.first_datagram()
    assert parse_init(init) == (Pattern.XX, 0xAAAA)
    response = right.handle_init(init)
    done = left.handle_response(response)
    assert done.finish is not None
    assert parse_response(done.finish, FINISH) == (Pattern.XX, 0xAAAA, 0xBBBB)
    other = right.handle_finish(done.finish)
    seal_both_ways(done, other)
    assert (done.remote_static, other.remote_static) == (public(b"r"), public(b"i"))
    assert (done.params, other.params) == (THERE, HERE)
    assert len(done.finish) < len(init)
    assert len(response) < len(init)


def test_ik_reconnects_in_one_round_trip() -> None:
    left = initiator(Pattern.IK)
    init = left.first_datagram(timestamp=1_700_000_000_000_000_000)
    opened = open_ik_init(init, private(b"r"), b"p", Entropy(2))
    assert opened.remote_static == public(b"i")
    assert opened.timestamp == 1_700_000_000_000_000_000
    response, other = opened.respond(PSK, 0xBBBB, THERE)
    done = left.handle_response(memoryview(response))
    seal_both_ways(done, other)
    assert done.finish is None
    assert other.params == replace(HERE, timestamp=opened.timestamp)
    assert len(response) < len(init)


def test_a_challenge_comes_back_in_the_next_init_and_only_the_pair_can_have_made_it() -> None:
    left = initiator(Pattern.IK)
    init = left.first_datagram(timestamp=5)
    opened = open_ik_init(init, private(b"r"), b"p", Entropy(2))
    assert opened.params.challenge == b""
    asked = Challenge(b"c" * 16, 7_200 * 10**9)
    datagram = opened.challenge(asked, Entropy(3))
    assert (receiver_of(datagram), len(datagram)) == (0xAAAA, SIZE)
    for bit in range(8 * len(datagram)):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedPacket):
            left.handle_challenge(damaged)
    with pytest.raises(MalformedPacket):
        initiator(Pattern.IK, seed=9).handle_challenge(datagram)  # it sent another init
    assert left.challenge == b""
    assert left.handle_challenge(memoryview(datagram)) == asked
    again = left.first_datagram(timestamp=6)
    opened = open_ik_init(again, private(b"r"), b"p", Entropy(2))
    assert (opened.params.challenge, opened.timestamp, len(again)) == (asked.value, 6, len(init))
    response, other = opened.respond(PSK, 0xBBBB, THERE)
    seal_both_ways(left.handle_response(response), other)


def test_a_challenge_of_another_length_is_malformed() -> None:
    data = encode_params(replace(HERE, challenge=b"c" * 16))
    assert decode_params(data + bytes(9)).challenge == b"c" * 16
    assert decode_params(data[:-18] + bytes(9)).challenge == b"", "older versions say nothing"
    with pytest.raises(MalformedPacket):
        decode_params(data[:-17] + b"\x0f" + bytes(15))


def test_no_datagram_tells_the_length_of_a_name() -> None:
    lengths = set()
    for name in ("", "n" * 64):
        left, right = initiator(Pattern.XX), xx_responder()
        right._params = replace(THERE, name=name)
        lengths.add(len(right.handle_init(left.first_datagram())))
    assert len(lengths) == 1


def test_a_repeated_init_and_finish_get_the_same_answers() -> None:
    left, right = initiator(Pattern.XX), xx_responder()
    init = left.first_datagram()
    assert left.first_datagram() == init
    response = right.handle_init(init)
    assert right.handle_init(left.first_datagram(cookie=b"c" * 16)) == response
    finish = left.handle_response(response).finish
    assert finish is not None
    assert right.handle_finish(finish) is right.handle_finish(finish)


def test_ik_inits_are_fresh_and_a_late_response_to_an_earlier_one_still_completes() -> None:
    left = initiator(Pattern.IK)
    inits = [left.first_datagram(timestamp=number) for number in range(1, 6)]
    assert len(set(inits)) == 5
    response, other = open_ik_init(inits[1], private(b"r"), b"p", Entropy(2)).respond(PSK, 1, THERE)
    seal_both_ways(left.handle_response(response), other)
    left = initiator(Pattern.IK)
    inits = [left.first_datagram(timestamp=number) for number in range(1, 6)]
    response, _ = open_ik_init(inits[0], private(b"r"), b"p", Entropy(2)).respond(PSK, 1, THERE)
    with pytest.raises(NoiseError):
        left.handle_response(response)


def test_different_codes_fail_at_the_first_datagram() -> None:
    with pytest.raises(NoiseError, match="codes differ"):
        xx_responder(psk=b"x" * 32).handle_init(initiator(Pattern.XX).first_datagram())


@pytest.mark.parametrize("pattern", list(Pattern))
def test_a_different_prologue_fails(pattern: Pattern) -> None:
    init = initiator(pattern).first_datagram()
    responder = xx_responder(prologue=b"q")
    with pytest.raises(NoiseError):
        responder.handle_init(init) if pattern is Pattern.XX else open_ik_init(init, private(b"r"), b"q", Entropy(2))


def test_an_ik_response_under_another_psk_is_refused_and_the_right_one_still_works() -> None:
    left = initiator(Pattern.IK)
    init = left.first_datagram(timestamp=1)
    wrong, _ = open_ik_init(init, private(b"r"), b"p", Entropy(2)).respond(b"x" * 32, 1, THERE)
    with pytest.raises(NoiseError):
        left.handle_response(wrong)
    right, other = open_ik_init(init, private(b"r"), b"p", Entropy(2)).respond(PSK, 1, THERE)
    seal_both_ways(left.handle_response(right), other)


def test_a_header_cannot_be_changed_by_whoever_knows_the_mac1_key() -> None:
    init = bytearray(initiator(Pattern.IK).first_datagram(timestamp=1))
    init[7] ^= 1
    key = mac1_key(public(b"r"))
    assert not verify_mac1(init, key)
    forged = append_macs(bytes(init[:-32]), key)
    assert verify_mac1(forged, key)
    with pytest.raises(NoiseError):
        open_ik_init(forged, private(b"r"), b"p", Entropy(2))


def test_a_forged_response_or_finish_does_not_spoil_the_handshake() -> None:
    left, right = initiator(Pattern.XX), xx_responder()
    response = right.handle_init(left.first_datagram())
    for position in (0, 1, 5, 9, 40, 100, 200, 230):
        forged = bytearray(response)
        forged[position] ^= 1
        with pytest.raises(MalformedPacket):
            left.handle_response(forged)
    done = left.handle_response(response)
    assert done.finish is not None
    for position in (0, 1, 5, 9, 40, 100, 200, 230):
        forged = bytearray(done.finish)
        forged[position] ^= 1
        with pytest.raises(MalformedPacket):
            right.handle_finish(forged)
    seal_both_ways(done, right.handle_finish(done.finish))
    with pytest.raises(MalformedPacket):
        left.handle_response(response)


def test_one_pairing_takes_one_init() -> None:
    right = xx_responder()
    with pytest.raises(NoiseError):
        right.handle_finish(b"\x72\x01" + bytes(250))
    right.handle_init(initiator(Pattern.XX).first_datagram())
    with pytest.raises(NoiseError):
        right.handle_init(initiator(Pattern.XX, seed=9).first_datagram())


def test_a_busy_responder_asks_for_a_cookie_and_gets_it() -> None:
    checker = CookieChecker(Entropy(5))
    left = initiator(Pattern.IK)
    init = left.first_datagram(timestamp=1)
    now = Instant(1000.0)
    assert not checker.verify_mac2(now, init, REMOTE)
    reply = checker.make_reply(now, init, REMOTE, public(b"r"))
    assert len(reply) < len(init)
    assert reply_index(reply) == 0xAAAA
    left.first_datagram(timestamp=2)
    left.handle_cookie_reply(reply)
    second = left.first_datagram(timestamp=3)
    assert checker.verify_mac2(now, second, REMOTE)
    assert not checker.verify_mac2(now, second, Address("198.51.100.8", 41641))
    assert not checker.verify_mac2(now, second, Address("198.51.100.7", 41642))
    assert open_ik_init(second, private(b"r"), b"p", Entropy(2)).timestamp == 3
    assert checker.verify_mac2(Instant(now + SECRET_LIFETIME + 1), second, REMOTE)  # the previous secret still counts
    assert not checker.verify_mac2(Instant(now + 2 * SECRET_LIFETIME + 2), second, REMOTE)


def test_a_cookie_does_not_survive_a_long_sleep() -> None:
    checker = CookieChecker(Entropy(5))
    left = initiator(Pattern.XX)
    left.handle_cookie_reply(checker.make_reply(Instant(0.0), left.first_datagram(), REMOTE, PSK))
    init = left.first_datagram()
    assert checker.verify_mac2(Instant(1.0), init, REMOTE)
    assert not checker.verify_mac2(Instant(90_000.0), init, REMOTE)


def test_a_forged_cookie_reply_is_refused() -> None:
    checker = CookieChecker(Entropy(5))
    left = initiator(Pattern.IK)
    init = left.first_datagram(timestamp=1)
    reply = bytearray(checker.make_reply(Instant(0.0), init, REMOTE, public(b"r")))
    reply[30] ^= 1
    with pytest.raises(NoiseError):
        left.handle_cookie_reply(reply)
    with pytest.raises(MalformedPacket):
        left.handle_cookie_reply(reply[:-1])
    with pytest.raises(MalformedPacket):
        consume_reply(b"", PSK, mac1_of(init))
    with pytest.raises(MalformedPacket):
        checker.make_reply(Instant(0.0), b"short", REMOTE, PSK)
    assert left.cookie is None


def test_params_survive_the_wire_and_leave_room_for_later_versions() -> None:
    assert decode_params(encode_params(THERE)) == THERE
    assert decode_params(encode_params(THERE) + b"more to come") == THERE
    assert decode_params(encode_params(replace(HERE, receive_buffer=2**40))).receive_buffer == 2**32 - 1
    longest = replace(THERE, name="n" * 64, aeads=(1, 2, 3, 4, 5, 6, 7, 8))
    assert decode_params(encode_params(longest)) == longest
    taker = replace(HERE, record_parts=32)
    assert decode_params(encode_params(taker)[:-1]) == HERE, "who says nothing of records takes none"
    assert decode_params(encode_params(taker)) == taker


@pytest.mark.parametrize("change", [{"name": "ö" * 33}, {"aeads": ()}, {"aeads": (1,) * 9}])
def test_our_own_nonsense_is_not_encoded(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        encode_params(replace(HERE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [0, 1, 30, -5])
def test_bad_params_are_malformed(position: int) -> None:
    data = bytearray(encode_params(HERE))
    data[position] = 0xFF if position else 0
    with pytest.raises(MalformedPacket):
        decode_params(data)


def test_the_cipher_is_the_one_that_suits_both() -> None:
    with_aes, without = preferred_aeads(True), preferred_aeads(False)
    assert choose_aead(with_aes, with_aes) == AES_256_GCM
    assert choose_aead(with_aes, without) == choose_aead(without, with_aes) == CHACHA20_POLY1305
    assert choose_aead(without, without) == CHACHA20_POLY1305
    assert choose_aead((9, 1), (1,)) == AES_256_GCM
    with pytest.raises(MalformedPacket):
        choose_aead((1,), (2, 9))


def test_prologues_differ_in_everything_they_bind() -> None:
    assert len({ik_prologue(), xx_prologue(1, b"a", b"b"), xx_prologue(2, b"a", b"b"), xx_prologue(1, b"b", b"a")}) == 4
    assert xx_prologue(1, b"ab", b"c") != xx_prologue(1, b"a", b"bc")
    assert len(pair_psk(b"c" * 32)) == 32
