"""The signed roster: what is refused, names, and the keys that come of its secret."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from tunnel.errors import MalformedPacket
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.room.core.roster import (
    MAX_ROSTER,
    SIGNATURE_SIZE,
    Member,
    Roster,
    commit,
    decode_roster,
    free_label,
    invited_psk,
    is_signed,
    make_label,
    pair_psk,
    public_key,
    sign_roster,
)

KEY = random.Random(1).randbytes(32)
OTHER = random.Random(2).randbytes(32)


def a_roster(count: int = 3, **changes: object) -> Roster:
    members = tuple(Member(bytes((number,)) * 32, f"member-{number}", number) for number in range(1, count + 1))
    roster = Roster(
        room=public_key(KEY), version=7, epoch=2, name="game", subnet=bytes((10, 1, 2, 0)), ula=b"\xfd" + b"u" * 7,
        commitment=commit(OTHER), members=members,
    )  # fmt: skip
    return msgspec.structs.replace(roster, **changes)


def test_what_is_signed_is_read_again_and_fits_with_sixteen_of_the_longest_names() -> None:
    members = tuple(Member(bytes((n,)) * 32, f"{'x' * 60}-{n:02}", n) for n in range(1, MAX_MEMBERS + 1))
    roster = a_roster(members=members, name="y" * 63, version=2**48 - 1, epoch=2**32 - 1)
    data = sign_roster(roster, KEY)
    assert decode_roster(data) == roster
    assert is_signed(data, roster.room)
    assert len(data) < MAX_ROSTER


def test_addresses_follow_from_subnet_prefix_and_host() -> None:
    roster = a_roster()
    second = roster.members[1]
    assert roster.ipv4(second) == "10.1.2.2"
    assert roster.ipv6(second) == "fd75:7575:7575:7575::2"
    assert roster.creator.host == 1
    assert roster.member(second.static) is roster.named("member-2") is second
    assert roster.member(bytes(32)) is roster.named("nobody") is None


@pytest.mark.parametrize("position", [0, 40, SIGNATURE_SIZE, SIGNATURE_SIZE + 10, 150, -1])
def test_a_changed_byte_breaks_the_signature(position: int) -> None:
    data = bytearray(sign_roster(a_roster(), KEY))
    data[position] ^= 1
    assert not is_signed(data, public_key(KEY))
    assert not is_signed(sign_roster(a_roster(), OTHER), public_key(KEY))


def test_a_room_that_is_no_key_signs_nothing() -> None:
    data = sign_roster(a_roster(), KEY)
    assert not is_signed(data, b"\xff" * 32)
    assert not is_signed(data, b"short")
    assert not is_signed(b"", public_key(KEY))


A, B = Member(b"a" * 32, "a", 1), Member(b"b" * 32, "b", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"members": ()},
        {"members": (A, Member(b"a" * 32, "b", 2))},
        {"members": (A, Member(b"b" * 32, "a", 2))},
        {"members": (A, Member(b"b" * 32, "b", 1))},
        {"members": (B, A)},
        {"members": (B,)},
        {"members": (A, Member(b"b" * 31, "b", 2))},
        {"members": (A, Member(b"b" * 32, "b", 255))},
        {"members": (A, Member(b"b" * 32, "b", 0))},
        *({"members": (A, Member(b"b" * 32, name, 2))} for name in ("", "B", "-b", "b-", "b.c", "b\n", "x" * 64, "ü")),
        {"members": tuple(Member(bytes((n,)) * 32, f"m{n}", n) for n in range(1, MAX_MEMBERS + 2))},
        {"name": "../etc"},
        {"version": 0},
        {"version": 2**48},
        {"epoch": 0},
        {"subnet": bytes((10, 1, 2, 1))},
        {"subnet": bytes((8, 8, 8, 0))},
        {"subnet": bytes((172, 32, 0, 0))},
        {"subnet": bytes(3)},
        {"ula": b"\x20" + bytes(7)},
        {"ula": b"\xfd" + bytes(8)},
        {"room": bytes(31)},
        {"commitment": b""},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_roster_may_say_is_malformed_even_when_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedPacket):
        decode_roster(sign_roster(a_roster(**changes), KEY))


def test_later_elements_are_ignored() -> None:
    data = sign_roster(a_roster(), KEY)
    body = bytearray(data[SIGNATURE_SIZE:])
    body[0] += 1
    assert decode_roster(bytes(SIGNATURE_SIZE) + body + b"\x05") == a_roster()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Anna's PC", "anna-s-pc"),
        ("müller", "muller"),
        ("  ", "member"),
        ("日本", "member"),
        ("731-crossover-clockwork", "m731-crossover-clockwork"),
        ("--x--", "x"),
        ("A" * 200, "a" * 63),
        ("12", "12"),
    ],
)
def test_labels(text: str, label: str) -> None:
    assert make_label(text) == label
    decode_roster(sign_roster(a_roster(members=(Member(b"a" * 32, label, 1),)), KEY))


def test_a_taken_label_gets_a_number_and_stays_a_label() -> None:
    taken = {"x" * 63, "anna", "anna-2"}
    assert free_label("anna", taken) == "anna-3"
    assert free_label("bob", taken) == "bob"
    assert free_label("x" * 63, taken) == "x" * 61 + "-2"


def test_the_psk_of_a_pair_is_the_same_from_both_ends_and_another_in_each_epoch() -> None:
    assert pair_psk(KEY, b"a" * 32, b"b" * 32) == pair_psk(KEY, b"b" * 32, b"a" * 32)
    different = {
        pair_psk(KEY, b"a" * 32, b"b" * 32),
        pair_psk(OTHER, b"a" * 32, b"b" * 32),
        pair_psk(KEY, b"a" * 32, b"c" * 32),
        invited_psk(KEY),
        KEY,
    }
    assert len(different) == 5


def test_the_bytes_are_those_of_the_protocol_document() -> None:
    secret = bytes(range(32))
    assert commit(secret).hex() == COMMITMENT
    assert pair_psk(secret, b"\x01" * 32, b"\x02" * 32).hex() == PAIR
    assert invited_psk(secret).hex() == INVITED


COMMITMENT = "2ecefece54a275f4dee7ebe95c5a174cf0321253ba40913e8b6bc93333b817f8"
PAIR = "3aece8f6e1bc646bd74d320bef608bf3fd85a0091b885388cc196ba58ea19560"
INVITED = "d5e9b1d276387795800e02f87893c523441f9f939d6db328c3aeafda54857d25"
