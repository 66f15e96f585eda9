"""Noise against the public vectors (where the folder beside the repository has them) and against `noiseprotocol`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.transport.crypto.noise import CipherState, HandshakeState, NoiseError

from .helpers import Entropy, private

VECTORS = Path(__file__).with_name("noise_vectors.json")  # of the cacophony implementation, public domain


def load_vectors() -> list[Any]:
    return list(json.loads(VECTORS.read_text())["vectors"])


def key_of(vector: dict[str, Any], name: str) -> X25519PrivateKey | None:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(vector[name])) if name in vector else None


def side_of(vector: dict[str, Any], side: str) -> HandshakeState:
    _, pattern, _, cipher, hash_name = vector["protocol_name"].split("_")
    psks = vector.get(f"{side}_psks")
    remote = vector.get(f"{side}_remote_static")
    return HandshakeState(
        pattern,
        side == "init",
        bytes.fromhex(vector[f"{side}_prologue"]),
        s=key_of(vector, f"{side}_static"),
        e=key_of(vector, f"{side}_ephemeral"),
        rs=bytes.fromhex(remote) if remote else None,
        psk=bytes.fromhex(psks[0]) if psks else None,
        cipher=cipher,
        hash_name=hash_name,
    )


def check_vector(vector: dict[str, Any]) -> None:
    sides = [side_of(vector, "init"), side_of(vector, "resp")]
    ciphers: list[tuple[CipherState, CipherState]] = []
    for number, message in enumerate(vector["messages"]):
        writer, reader = sides[number % 2], sides[1 - number % 2]
        payload, expected = bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])
        if not writer.finished:
            assert writer.write_message(payload) == expected
            assert reader.read_message(expected) == payload
            continue
        if not ciphers:
            assert writer.split() == reader.split()
            assert sides[0].handshake_hash == sides[1].handshake_hash == bytes.fromhex(vector["handshake_hash"])
            for key in writer.split():
                pair = CipherState(vector["protocol_name"].split("_")[3]), CipherState(vector["protocol_name"].split("_")[3])
                for cipher in pair:
                    cipher.initialize_key(key)
                ciphers.append(pair)
        seal, unseal = ciphers[number % 2]
        assert seal.encrypt_with_ad(b"", payload) == expected
        assert unseal.decrypt_with_ad(b"", expected) == payload
    assert ciphers


def test_every_public_vector_is_reproduced_byte_for_byte() -> None:
    vectors = load_vectors()
    assert len(vectors) > 10
    for vector in vectors:
        check_vector(vector)


def oracle(name: str, initiator: bool, prologue: bytes, **keys: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noiseprotocol looks for packages that it could use
        from noise.connection import Keypair, NoiseConnection

        connection = NoiseConnection.from_name(name.encode())
    (connection.set_as_initiator if initiator else connection.set_as_responder)()
    connection.set_prologue(prologue)
    connection.set_psks(psk=keys["psk"])
    connection.set_keypair_from_private_bytes(Keypair.STATIC, keys["s"])
    if "rs" in keys:
        connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, keys["rs"])
    connection.start_handshake()
    return connection


@pytest.mark.parametrize("ours_initiates", [True, False], ids=["we-begin", "oracle-begins"])
@pytest.mark.parametrize("pattern", ["XXpsk0", "IKpsk2"])
def test_the_oracle_and_we_agree_on_keys_and_hash(pattern: str, ours_initiates: bool) -> None:
    ours_static, their_static, psk, prologue = private(b"ours"), private(b"theirs"), b"k" * 32, b"prologue"
    their_public = their_static.public_key().public_bytes_raw()
    keys = {"s": their_static.private_bytes_raw(), "psk": psk}
    if pattern == "IKpsk2" and not ours_initiates:
        keys["rs"] = ours_static.public_key().public_bytes_raw()
    theirs = oracle(f"Noise_{pattern}_25519_ChaChaPoly_SHA256", not ours_initiates, prologue, **keys)
    rs = their_public if pattern == "IKpsk2" and ours_initiates else None
    ours = HandshakeState(pattern, ours_initiates, prologue, s=ours_static, rs=rs, psk=psk, entropy=Entropy(1))
    our_turn = ours_initiates
    while not ours.finished:
        if our_turn:
            assert theirs.read_message(ours.write_message(b"hello")) == b"hello"
        else:
            assert ours.read_message(bytes(theirs.write_message(b"world"))) == b"world"
        our_turn = not our_turn
    assert theirs.handshake_finished
    assert ours.remote_static == their_public
    assert ours.handshake_hash == theirs.get_handshake_hash()
    state = theirs.noise_protocol
    their_keys = (state.cipher_state_encrypt.k, state.cipher_state_decrypt.k)
    assert ours.split() == (their_keys if not ours_initiates else their_keys[::-1])


def pair(pattern: str) -> tuple[HandshakeState, HandshakeState]:
    a, b = private(b"a"), private(b"b")
    rs = b.public_key().public_bytes_raw() if pattern.startswith("IK") else None
    left = HandshakeState(pattern, True, b"", s=a, rs=rs, psk=b"p" * 32, entropy=Entropy(1))
    return left, HandshakeState(pattern, False, b"", s=b, psk=b"p" * 32, entropy=Entropy(2))


@pytest.mark.parametrize("pattern", ["XXpsk0", "IKpsk2"])
def test_a_forged_message_changes_nothing_and_the_genuine_one_still_completes(pattern: str) -> None:
    left, right = pair(pattern)
    writer, reader = left, right
    while not (left.finished and right.finished):
        message = writer.write_message(b"payload")
        for position in range(0, len(message), 7):
            forged = bytearray(message)
            forged[position] ^= 1
            with pytest.raises(NoiseError):
                reader.read_message(forged)
        for length in (0, 1, 31, 32, 33, len(message) - 1):
            with pytest.raises(NoiseError):
                reader.read_message(message[:length])
        assert reader.read_message(message) == b"payload"
        writer, reader = reader, writer
    assert left.split() == right.split()
    assert left.chaining_key == right.chaining_key


LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_low_order_ephemeral_is_a_noise_error(point: bytes) -> None:
    _, right = pair("IKpsk2")
    with pytest.raises(NoiseError):
        right.read_message(point + bytes(200))
    left = HandshakeState("NN", True, b"", entropy=Entropy(1))
    left.write_message()
    with pytest.raises(NoiseError):
        left.read_message(point + bytes(16))
    right = HandshakeState("NN", False, b"", entropy=Entropy(1))
    right.read_message(point)
    with pytest.raises(NoiseError):
        right.write_message()


def test_turns_are_kept() -> None:
    left, right = pair("XXpsk0")
    with pytest.raises(NoiseError):
        left.read_message(bytes(100))
    with pytest.raises(NoiseError):
        right.write_message()
    with pytest.raises(NoiseError):
        left.split()
    with pytest.raises(NoiseError):
        right.read_message(bytes(70_000))


def test_what_only_our_own_code_can_get_wrong_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="pattern"):
        HandshakeState("XXfallback", True, b"")
    with pytest.raises(ValueError, match="static"):
        HandshakeState("IK", True, b"", s=private(b"a"))
    with pytest.raises(ValueError, match="32"):
        HandshakeState("NNpsk0", True, b"", psk=b"short")
    with pytest.raises(ValueError, match="entropy"):
        HandshakeState("NN", True, b"").write_message()
    with pytest.raises(ValueError, match="psk"):
        HandshakeState("NNpsk0", True, b"", entropy=Entropy(1)).write_message()
