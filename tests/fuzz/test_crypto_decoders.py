"""Any bytes to any decoder of crypto and pairing: a value or MalformedPacket, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.crypto.helpers import Entropy, private, public
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.pairing.code import Code, complete, looks_like_code, parse_code
from tunnel.pairing.grants import GrantSet, parse_grant
from tunnel.pairing.identity import sanitise_name
from tunnel.pairing.pake import Pake
from tunnel.transport.crypto.challenge import Challenge, receiver_of, unseal
from tunnel.transport.crypto.cookie import CookieChecker, append_macs, consume_reply, mac1_key, reply_index, verify_mac1
from tunnel.transport.crypto.handshake import FINISH, Initiator, Pattern, XxResponder, open_ik_init, parse_init, parse_response
from tunnel.transport.crypto.noise import HandshakeState, NoiseError
from tunnel.transport.crypto.params import Params, decode_params, encode_params
from tunnel.units import Address, Instant

PSK = b"k" * 32
HERE = Params(instance=1, name="here", aeads=(1, 2), receive_buffer=1)
REMOTE = Address("192.0.2.1", 1)
RANDOM = st.binary(max_size=400)


def initiator(pattern: Pattern) -> Initiator:
    return Initiator(
        pattern,
        static=private(b"i"),
        remote_static=public(b"r") if pattern is Pattern.IK else None,
        psk=PSK,
        prologue=b"p",
        index=7,
        params=HERE,
        entropy=Entropy(1),
    )


def xx_responder() -> XxResponder:
    return XxResponder(static=private(b"r"), psk=PSK, prologue=b"p", index=8, params=HERE, entropy=Entropy(2))


def initiator_after_init(pattern: Pattern) -> Initiator:
    side = initiator(pattern)
    side.first_datagram(timestamp=1)
    return side


def responder_after_init() -> XxResponder:
    side = xx_responder()
    side.handle_init(initiator(Pattern.XX).first_datagram())
    return side


def genuine() -> dict[str, bytes]:
    """One of each datagram, for hypothesis to damage."""
    left, right = initiator(Pattern.XX), xx_responder()
    xx_init = left.first_datagram()
    xx_response = right.handle_init(xx_init)
    finish = left.handle_response(xx_response).finish
    assert finish is not None
    ik_init = initiator(Pattern.IK).first_datagram(timestamp=1)
    ik_response, _ = open_ik_init(ik_init, private(b"r"), b"p", Entropy(2)).respond(PSK, 8, HERE)
    cookie = CookieChecker(Entropy(3)).make_reply(Instant(0.0), ik_init, REMOTE, public(b"r"))
    challenge = open_ik_init(ik_init, private(b"r"), b"p", Entropy(2)).challenge(Challenge(bytes(16), 1), Entropy(4))
    return {
        "xi": xx_init, "xr": xx_response, "xf": finish, "ii": ik_init, "ir": ik_response, "c": cookie, "ch": challenge,
    }  # fmt: skip


GENUINE = genuine()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A genuine datagram with bytes changed, cut or added, and often with its macs made right again."""
    data = bytearray(draw(st.sampled_from(sorted(GENUINE.values()))))
    for position, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[position] = value
    length = draw(st.integers(0, len(data)) | st.just(len(data)))
    out = bytes(data[:length]) + draw(st.binary(max_size=20) | st.just(b""))
    material = draw(st.sampled_from([None, PSK, public(b"r")]))
    return out if material is None else append_macs(out[:-32], mac1_key(material))


def nonsense() -> st.SearchStrategy[bytes]:
    return damaged() | RANDOM


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "parse_init": parse_init,
    "parse_response": parse_response,
    "parse_finish": lambda data: parse_response(data, FINISH),
    "decode_params": decode_params,
    "open_ik_init": lambda data: open_ik_init(data, private(b"r"), b"p", Entropy(2)).respond(PSK, 8, HERE),
    "xx_init": lambda data: xx_responder().handle_init(data),
    "xx_finish": lambda data: responder_after_init().handle_finish(data),
    "xx_response": lambda data: initiator_after_init(Pattern.XX).handle_response(data),
    "ik_response": lambda data: initiator_after_init(Pattern.IK).handle_response(data),
    "cookie_reply": lambda data: initiator_after_init(Pattern.IK).handle_cookie_reply(data),
    "challenge": lambda data: initiator_after_init(Pattern.IK).handle_challenge(data),
    "challenge to XX": lambda data: initiator_after_init(Pattern.XX).handle_challenge(data),
    "unseal": lambda data: unseal(data, bytes(32)),
    "receiver_of": receiver_of,
    "consume_reply": lambda data: consume_reply(data, PSK, bytes(16)),
    "reply_index": reply_index,
    "verify_mac1": lambda data: verify_mac1(data, mac1_key(PSK)),
    "verify_mac2": lambda data: CookieChecker(Entropy(3)).verify_mac2(Instant(0.0), data, REMOTE),
    "make_reply": lambda data: CookieChecker(Entropy(3)).make_reply(Instant(0.0), data, REMOTE, PSK),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_a_value_or_malformed_packet(name: str) -> None:
    decode = DECODERS[name]

    @settings(max_examples=60, deadline=None)
    @given(nonsense(), st.sampled_from([bytes, bytearray, memoryview]))
    def check(data: bytes, kind: type) -> None:
        with suppress(MalformedPacket):
            decode(kind(data))

    check()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["XXpsk0", "IKpsk2", "NN", "KK"]), st.booleans(), st.lists(st.binary(max_size=200), max_size=3))
def test_noise_gives_a_payload_or_noise_error(pattern: str, is_initiator: bool, messages: list[bytes]) -> None:
    state = HandshakeState(pattern, is_initiator, b"", s=private(b"a"), rs=public(b"b"), psk=PSK, entropy=Entropy(1))
    for message in messages:
        try:
            if state.is_initiator == (messages.index(message) % 2 == 0):
                state.write_message(b"payload")
            state.read_message(message)
        except NoiseError:
            pass


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Params,
        instance=st.integers(0, 2**64 - 1),
        name=st.text(st.characters(codec="utf-8"), max_size=16),
        aeads=st.lists(st.integers(0, 255), min_size=1, max_size=8).map(tuple),
        receive_buffer=st.integers(0, 2**32 - 1),
        path_policy=st.integers(0, 2),
        version=st.integers(1, 255),
        timestamp=st.integers(0, 2**64 - 1),
        resume=st.integers(0, 2**64 - 1),
        record_parts=st.integers(0, 255),
        challenge=st.just(b"") | st.binary(min_size=16, max_size=16),
        machine=st.just(b"") | st.binary(min_size=3, max_size=3),
    ),
    st.lists(st.tuples(st.integers(128, 255), st.binary(max_size=20)), max_size=3),
    st.just(b"") | st.binary(max_size=40).map(lambda padding: b"\0" + padding),
)
def test_params_come_back_as_they_went(params: Params, fields: list[tuple[int, bytes]], padding: bytes) -> None:
    later = b"".join(bytes((kind, len(value))) + value for kind, value in fields)
    assert decode_params(encode_params(params) + later + padding) == params
    assert replace(params) == params


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32).map(lambda element: b"\x01B" + element))
def test_a_pake_gives_a_psk_or_malformed_packet(message: bytes) -> None:
    with suppress(MalformedPacket):
        assert len(Pake("A", Code(731, "garden-violin"), Entropy(1)).finish(message)) == 32


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(), max_size=60) | st.from_regex(r"[0-9]{1,12}[- ][a-z]{1,8}[- ][a-z]{1,8}"))
def test_whatever_a_person_types_is_understood_or_explained(text: str) -> None:
    looks_like_code(text)
    complete(text)
    sanitise_name(text)
    for read in (parse_code, parse_grant):
        with suppress(ConfigurationError):
            read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(("protocol", "name", "host", "first", "last"), JSON)) | JSON, max_size=3))
def test_any_saved_grants_are_read_or_refused(records: list[Any]) -> None:
    with suppress(ConfigurationError):
        assert len(GrantSet.from_dicts(records)) <= len(records)
