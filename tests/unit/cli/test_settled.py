"""A command that stands leaves what it has made to itself: a look for garbage holds up nothing that it carries."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tunnel.cli.running import first_of


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


async def test_a_look_for_garbage_passes_over_what_was_there_when_a_command_stood() -> None:
    kept = [[] for _ in range(1_000)]  # type: ignore[var-annotated]
    gc.unfreeze()
    ended = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first_of, nursery, trio.sleep_forever, ended.wait, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        assert gc.get_freeze_count() > len(kept)
        assert len(gc.get_objects()) < len(kept)
        ended.set()
