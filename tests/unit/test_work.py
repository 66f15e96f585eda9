"""The counter of instructions that tests measure work with."""

from __future__ import annotations

import gc
from typing import Any

from tests.work import instructions


def test_a_collector_that_somebody_listens_to_is_not_counted() -> None:
    """Hypothesis does, once one of its tests has run: 38 instructions whenever a collection falls into what is measured."""
    heard: list[str] = []

    def listen(phase: str, _info: dict[str, Any]) -> None:
        heard.append(phase)

    def work() -> list[set[int]]:
        return [{number} for number in range(50)]  # sets, as lists are used again unseen by the collector

    usual = gc.get_threshold()
    alone = instructions(work)
    gc.callbacks.append(listen)
    gc.set_threshold(1, 1, 1)
    try:
        assert instructions(work) == alone
        heard.clear()
        assert len(work()) == 50
        assert heard, "it collects else"
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(listen)
