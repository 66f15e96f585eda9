"""A store's library that fails in a way nobody foresaw: the store is lost for a while, and the server goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio

from tunnel.fleet import store as module
from tunnel.fleet.store import AGAIN, Store
from tunnel.shell.fleet import Feed


class Asking:
    """A feed that has no orders."""

    channels = (b"news",)

    def __init__(self) -> None:
        self.finished: list[Sequence[object] | None] = []

    async def orders(self) -> list[object]:
        await trio.sleep_forever()
        raise AssertionError

    def finish(self, results: Sequence[object] | None) -> None:
        self.finished.append(results)


async def test_a_store_that_fails_in_an_unforeseen_way_is_tried_again_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    opened = 0

    @asynccontextmanager
    async def broken(*_: Any) -> AsyncIterator[Any]:
        nonlocal opened
        opened += 1
        raise UnboundLocalError("node")
        yield

    monkeypatch.setattr(module, "_open", broken)
    said: list[str] = []
    feed = Asking()
    with trio.move_on_after(4.5 * AGAIN):
        await Store("redis://127.0.0.1:1/", said.append).run(cast(Feed, feed))
    assert opened == 5
    assert feed.finished == [None] * 5
    (sentence,) = said
    assert sentence.startswith("The fleet's store cannot be used: unforeseen, please report it: UnboundLocalError('node').")
