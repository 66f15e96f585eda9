from __future__ import annotations

import pytest

from tests.unit.crypto.helpers import Entropy
from tunnel.errors import MalformedPacket
from tunnel.pairing.code import Code
from tunnel.pairing.pake import MESSAGE_SIZE, Pake

CODE = Code(731, "garden-violin")


def attempt(left: Code, right: Code) -> tuple[Pake, Pake, bytes, bytes]:
    exposer, connector = Pake("A", left, Entropy(1)), Pake("B", right, Entropy(2))
    return exposer, connector, exposer.finish(connector.message), connector.finish(memoryview(exposer.message))


def test_the_same_code_gives_the_same_psk() -> None:
    exposer, connector, left, right = attempt(CODE, CODE)
    assert left == right
    assert len(left) == 32
    assert exposer.verify_confirmation(connector.confirmation)
    assert connector.verify_confirmation(exposer.confirmation)
    assert exposer.confirmation != connector.confirmation
    assert len(exposer.message) == len(connector.message) == MESSAGE_SIZE
    assert exposer.confirmation not in left


@pytest.mark.parametrize("other", [Code(731, "garden-viola"), Code(732, "garden-violin")])
def test_another_code_or_nameplate_gives_another_psk_and_the_confirmation_tells(other: Code) -> None:
    exposer, connector, left, right = attempt(CODE, other)
    assert left != right
    assert not exposer.verify_confirmation(connector.confirmation)
    assert not connector.verify_confirmation(exposer.confirmation)
    assert not exposer.verify_confirmation(exposer.confirmation)
    assert not exposer.verify_confirmation(b"")


P = 2**255 - 19
BAD = {
    "empty": b"",
    "short": b"\x01B" + bytes(31),
    "long": b"\x01B" + bytes(33),
    "unknown suite": b"\x02B" + bytes(32),
    "our own side": b"\x01A" + bytes(32),
    "no side": b"\x01S" + bytes(32),
    "zero": b"\x01B" + (1).to_bytes(32, "little"),
    "order two": b"\x01B" + (P - 1).to_bytes(32, "little"),
    "order four": b"\x01B" + (0).to_bytes(32, "little"),
    "not canonical": b"\x01B" + (P + 1).to_bytes(32, "little"),
    "not on the curve": b"\x01B" + (2).to_bytes(32, "little"),
    "all ones": b"\x01B" + b"\xff" * 32,
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_a_hostile_message_is_malformed(message: bytes) -> None:
    with pytest.raises(MalformedPacket):
        Pake("A", CODE, Entropy(1)).finish(message)


def test_our_own_message_thrown_back_is_malformed() -> None:
    exposer = Pake("A", CODE, Entropy(1))
    with pytest.raises(MalformedPacket):
        exposer.finish(exposer.message)
    exposer = Pake("A", CODE, Entropy(1))
    with pytest.raises(MalformedPacket):
        exposer.finish(b"\x01B" + exposer.message[2:])


def test_one_attempt_takes_one_message() -> None:
    exposer, connector, _, _ = attempt(CODE, CODE)
    with pytest.raises(MalformedPacket):
        exposer.finish(connector.message)
    with pytest.raises(ValueError):
        Pake("A", CODE, Entropy(1)).confirmation  # noqa: B018
