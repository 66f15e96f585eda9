"""Random bytes in small pieces: each is given once, and they come from the system."""

from __future__ import annotations

import itertools
import os

import pytest

from tunnel.host.chance import AT_ONCE, Chance


def test_each_byte_of_the_system_is_given_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    number = itertools.count()

    def urandom(size: int) -> bytes:
        asked.append(size)
        return b"".join(next(number).to_bytes(4, "big") for _ in range(size // 4))

    monkeypatch.setattr(os, "urandom", urandom)
    chance = Chance()
    pieces = [chance(8) for _ in range(2 * AT_ONCE // 8)]
    assert b"".join(pieces) == b"".join(each.to_bytes(4, "big") for each in range(2 * AT_ONCE // 4))
    assert asked == [AT_ONCE, AT_ONCE]
    assert len(chance(16)) == 16
    assert len(chance(AT_ONCE - 8)) == AT_ONCE - 8  # of a new draw: what was left of the last one is given to nobody
    assert len(chance(AT_ONCE + 4)) == AT_ONCE + 4
    assert asked == [AT_ONCE] * 4 + [AT_ONCE + 4]


def test_two_who_draw_get_other_bytes() -> None:
    assert Chance()(16) != Chance()(16)
