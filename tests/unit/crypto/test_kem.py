"""The post-quantum half: sizes, what is refused, what both sides compute, and which psk a handshake runs under."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.handshake import Completed, Initiator, Pattern, ik_prologue, open_ik_init
from tunnel.transport.crypto.kem import (
    PSK_ID_SIZE,
    PUBLIC_SIZE,
    TEXT_SIZE,
    KemKey,
    answer,
    common_psk,
    derive,
    is_available,
    psk_id,
)
from tunnel.transport.crypto.noise import NoiseError
from tunnel.transport.crypto.params import MAX_INIT_PARAMS_SIZE, MAX_PSKS, Params, decode_params, encode_params

ENTROPY = random.Random(1).randbytes
FRIEND, HOME = (X25519PrivateKey.from_private_bytes(bytes((number,)) * 32) for number in (1, 2))
HOME_PUBLIC = HOME.public_key().public_bytes_raw()
PSK = bytes(range(32))
NEWER = [bytes((number,)) * 32 for number in range(50, 58)]


def params(**more: object) -> Params:
    return Params(instance=7, name="x", aeads=(1, 2), receive_buffer=65_536, **more)  # type: ignore[arg-type]


def test_this_machine_has_it() -> None:
    assert is_available()


def test_both_sides_get_the_same_secret() -> None:
    key = KemKey(ENTROPY)
    text, secret = answer(key.public)
    assert (len(key.public), len(text), len(secret)) == (PUBLIC_SIZE, TEXT_SIZE, 32)
    assert key.open(text) == secret


def test_keys_come_from_the_entropy_that_is_handed_in() -> None:
    assert KemKey(random.Random(5).randbytes).public == KemKey(random.Random(5).randbytes).public
    assert KemKey(random.Random(5).randbytes).public != KemKey(random.Random(6).randbytes).public


@pytest.mark.parametrize("public", [b"", bytes(PUBLIC_SIZE - 1), bytes(PUBLIC_SIZE + 1), b"\xff" * PUBLIC_SIZE])
def test_what_is_no_key_is_malformed(public: bytes) -> None:
    """0xFFF is no number modulo 3,329: FIPS 203 §7.2 has such a key refused."""
    with pytest.raises(MalformedPacket):
        answer(public)


@pytest.mark.parametrize("size", [0, TEXT_SIZE - 1, TEXT_SIZE + 1])
def test_a_ciphertext_of_another_size_is_malformed(size: int) -> None:
    with pytest.raises(MalformedPacket):
        KemKey(ENTROPY).open(bytes(size))


def test_a_wrong_ciphertext_gives_a_secret_that_nobody_has() -> None:
    key = KemKey(ENTROPY)
    text, secret = answer(key.public)
    for place in (0, 500, TEXT_SIZE - 1):
        wrong = bytearray(text)
        wrong[place] ^= 1
        found = key.open(bytes(wrong))
        assert len(found) == 32
        assert found != secret


def test_what_is_derived_depends_on_everything_that_was_said() -> None:
    given = [b"before" * 5, b"secret" * 5, b"hash", b"asked", b"answered"]
    made = [derive(*given)]
    for place in range(len(given)):
        other = list(given)
        other[place] += b"!"
        made.append(derive(*other))
    secrets = [secret for psks in made for secret in psks]
    assert {len(secret) for secret in secrets} == {32}
    assert all(one != another for one, another in combinations(secrets, 2))
    assert derive(*given) == made[0]


def test_a_psk_is_named_by_what_does_not_tell_it() -> None:
    names = [psk_id(psk) for psk in NEWER]
    assert {len(name) for name in names} == {PSK_ID_SIZE}
    assert len(set(names)) == len(names)
    assert not any(name in psk for name, psk in zip(names, NEWER, strict=True))
    assert common_psk([names[3], names[1]], NEWER[:3]) == NEWER[1]
    assert common_psk([names[3]], NEWER[:3]) is None
    assert common_psk([], NEWER) is None


# --- handshakes under one of several


def handshake(ours: list[bytes], theirs: list[bytes]) -> tuple[Completed, Completed]:
    """IK where both have these besides the psk of the pairing, as initiator and responder have it then."""
    initiator = Initiator(
        Pattern.IK,
        static=FRIEND,
        remote_static=HOME_PUBLIC,
        psk=PSK,
        prologue=ik_prologue(),
        index=7,
        params=params(hybrid=1),
        entropy=ENTROPY,
        newer=ours,
    )
    opened = open_ik_init(initiator.first_datagram(5), HOME, ik_prologue(), ENTROPY)
    response, completed = opened.respond(common_psk(opened.params.psks, theirs) or PSK, 8, params(hybrid=1))
    return initiator.handle_response(response), completed


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([], [], PSK),
        (NEWER[:1], NEWER[:1], NEWER[0]),
        (NEWER[:3], NEWER[1:2], NEWER[1]),
        (NEWER[:3], NEWER[2::-1], NEWER[0]),  # as the initiator ranks them
        (NEWER[:MAX_PSKS], NEWER[MAX_PSKS - 1 : MAX_PSKS], NEWER[MAX_PSKS - 1]),
        (NEWER[:2], NEWER[5:7], PSK),
        (NEWER[:2], [], PSK),
        ([], NEWER, PSK),
    ],
)
def test_a_handshake_runs_under_the_likeliest_psk_that_both_have(
    ours: list[bytes], theirs: list[bytes], expected: bytes
) -> None:  # fmt: skip
    mine, yours = handshake(ours, theirs)
    assert mine.psk == yours.psk == expected
    assert mine.handshake_hash == yours.handshake_hash
    assert mine.params.hybrid == yours.params.hybrid == 1
    sealed = mine.keypair.send.encrypt(bytes(12), b"hello", b"")
    assert yours.keypair.receive.decrypt(bytes(12), sealed, b"") == b"hello"


def test_a_response_under_a_psk_that_was_not_named_does_not_authenticate() -> None:
    initiator = Initiator(
        Pattern.IK,
        static=FRIEND,
        remote_static=HOME_PUBLIC,
        psk=PSK,
        prologue=ik_prologue(),
        index=7,
        params=params(),
        entropy=ENTROPY,
        newer=NEWER[:2],
    )
    init = initiator.first_datagram(5)
    response, _ = open_ik_init(init, HOME, ik_prologue(), ENTROPY).respond(NEWER[4], 8, params())
    with pytest.raises(NoiseError):
        initiator.handle_response(response)
    response, _ = open_ik_init(init, HOME, ik_prologue(), ENTROPY).respond(NEWER[1], 8, params())
    assert initiator.handle_response(response).psk == NEWER[1]  # nothing was spoilt


def test_the_longest_params_fit_an_init() -> None:
    longest = Params(
        instance=2**64 - 1,
        name="x" * 64,
        aeads=tuple(range(1, 9)),
        receive_buffer=2**32 - 1,
        timestamp=2**63,
        resume=2**64 - 1,
        record_parts=32,
        challenge=bytes(range(16)),
        purpose=1,
        machine=b"abc",
        hybrid=1,
        psks=tuple(map(psk_id, NEWER[:MAX_PSKS])),
    )
    assert len(encode_params(longest)) == MAX_INIT_PARAMS_SIZE
    assert decode_params(encode_params(longest) + bytes(8)) == longest


def test_params_of_older_versions_know_no_step() -> None:
    older = encode_params(params())
    assert decode_params(older + bytes(40)) == params()
    assert decode_params(older + bytes(40)).hybrid == 0


@pytest.mark.parametrize("field", [b"\x02\x02\x01\x01", b"\x03\x07" + bytes(7)])
def test_fields_of_the_wrong_size_are_malformed(field: bytes) -> None:
    with pytest.raises(MalformedPacket):
        decode_params(encode_params(params()) + field)
