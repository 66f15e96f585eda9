"""A process of many long-lived objects: the garbage collector looks at what is new, and at everything no more."""

from __future__ import annotations

import gc
import weakref

from tunnel.host.collector import MIDDLING, YOUNG, tamed


class Node:
    def __init__(self) -> None:
        self.me = self


def test_new_cycles_are_found_and_the_old_are_not_looked_at() -> None:
    gc.collect()
    before = gc.get_threshold()
    whole = 0

    def looked(phase: str, info: dict[str, int]) -> None:
        nonlocal whole
        whole += phase == "start" and info["generation"] == 2

    with tamed():
        assert gc.get_freeze_count() > 1_000
        gc.callbacks.append(looked)
        try:
            found = weakref.ref(Node())
            kept = [[number] for number in range(YOUNG * (MIDDLING + 2))]
            assert found() is None
            more = [[each] for each in kept]
            assert not whole
        finally:
            gc.callbacks.remove(looked)
        del more
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
