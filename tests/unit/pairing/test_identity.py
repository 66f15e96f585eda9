from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.pairing.code import looks_like_code
from tunnel.pairing.identity import days_around, fingerprint, room_id, sanitise_name


def test_a_fingerprint_is_short_groups_of_a_hash() -> None:
    text = fingerprint(bytes(32))
    assert text == "SHA256:mzuh-vlpy-mk6x-o3ep-ygfy-5h4o-eaej-ofef"
    assert fingerprint(bytes(31) + b"\1") != text


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("home", "home"),
        ("  my \t home\n", "my home"),
        ("\x1b[31mred\x00", "[31mred"),
        ("abc\u202egnp.exe", "abcgnp.exe"),
        ("", "peer"),
        ("\u200b\u2028", "peer"),
        ("--help", "help"),
        ("- -x", "x"),
        ("731-garden-violin", "peer 731-garden-violin"),
        ("731 garden violin", "peer 731 garden violin"),
        ("ö" * 40, "ö" * 32),
        ("o\u0308", "ö"),
        ("\ud800x", "x"),
    ],
)
def test_a_name_is_made_safe(given_name: str, name: str) -> None:
    assert sanitise_name(given_name) == name


@given(st.text(alphabet=st.characters(), max_size=120) | st.from_regex(r"-*[0-9]{3}-[a-z]{1,40}-[a-z]{1,40}.?"))
def test_every_name_comes_out_safe_and_stays_as_it_is(text: str) -> None:
    name = sanitise_name(text)
    assert name
    assert name.isprintable()
    assert len(name.encode()) <= 64
    assert not looks_like_code(name)
    assert not name.startswith("-")
    assert sanitise_name(name) == name


def test_rooms_change_with_the_day_and_the_psk() -> None:
    psk = b"k" * 32
    rooms = {room_id(psk, day) for day in days_around(1_700_000_000.0)} | {room_id(b"x" * 32, 19_675)}
    assert len(rooms) == 4
    assert all(len(room) == 16 for room in rooms)
    assert days_around(1_700_000_000.0) == (19_674, 19_675, 19_676)
    assert days_around(-5.0) == (0, 1, 2)
