"""By what a forward that leads to itself is known."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from tunnel.ports import loops

ONE, OTHER = ("127.0.0.1", 40_000), ("127.0.0.1", 9_000)


def test_the_same_ends_in_another_network_of_this_machine_are_another_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers: both have a 127.0.0.1, and the same port may be in use in each."""
    marks = set()
    for number in (1, 2):
        monkeypatch.setattr(os, "stat", lambda _path, number=number: SimpleNamespace(st_ino=number))
        loops._machine.cache_clear()
        marks.add(loops.mark_of(ONE, OTHER))
    monkeypatch.undo()
    loops._machine.cache_clear()
    assert len(marks) == 2


def test_both_ends_count() -> None:
    marks = [loops.mark_of(ONE, OTHER), loops.mark_of(OTHER, ONE), loops.mark_of(ONE, ("127.0.0.1", 9_001))]
    assert len(set(marks)) == 3
    assert all(0 < mark < 1 << 8 * loops.MARK_SIZE for mark in marks)
