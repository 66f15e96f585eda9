"""Runs one command under trio: Ctrl-C, SIGTERM and a closed terminal end it cleanly, a second Ctrl-C at once."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from tunnel.cli.main import logger
from tunnel.cli.voice import Voice

GOODBYE_LIMIT: Final = 2.5  # seconds from the signal until the process ends, whatever still hangs

LAST_LOOK: Final = 0.2  # seconds without progress for the last sentences of a process that is ended at once

HANGUP: Final[int | None] = getattr(signal, "SIGHUP", None)  # the terminal has gone; Windows has none


@dataclass(slots=True)
class Ending:
    """How a command wants to be ended: by `stop()`, where it has said so, and else by being cancelled.

    `hung_up()` is called instead when the terminal goes, for a command that outlives it.  `hurry()` is for a command that has
    said it would: from then on nothing waits for whoever reads what it says.
    """

    stop: Callable[[], None] | None = None
    hung_up: Callable[[], None] | None = None
    hurry: Callable[[], None] = lambda: None
    patience: float = 0.0  # seconds more than GOODBYE_LIMIT that it may take to end


def ending_signals(*, outlives_terminal: bool = False) -> set[int]:
    """Which signals are ours.  SIGHUP is not where it was ignored when we were started, by nohup(1) for instance."""
    found = {int(signal.SIGINT), int(signal.SIGTERM)}
    if HANGUP is not None and (outlives_terminal or signal.getsignal(HANGUP) is not signal.SIG_IGN):
        found.add(HANGUP)
    return found


def run(
    command: Callable[[Ending], Awaitable[int | None]],
    *,
    outlives_terminal: bool = False,
    hurries_later: bool = False,
    is_answer: bool = False,
) -> int:
    """The command's exit code, or 130 after Ctrl-C and 0 after SIGTERM; its exceptions come out as they are.

    `outlives_terminal`: SIGHUP does not end it.  `hurries_later`: it calls `Ending.hurry` itself, since that starts threads, and
    what this process has of privileges then, they keep.  `is_answer`: it carries nothing, and all that it says is wanted.
    """
    ending = Ending()
    caught: list[int] = []
    result: int | None = None

    async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*ending_signals(outlives_terminal=outlives_terminal)) as signals:
            task_status.started()
            async for number in signals:
                if number == HANGUP and outlives_terminal:
                    if ending.hung_up is not None:
                        ending.hung_up()
                    continue
                logger.info("ending: %s", signal.Signals(number).name)
                if caught:
                    _leave(exit_code(number))
                caught.append(number)
                _end_anyway(exit_code(number), ending.patience)
                if ending.stop is not None:
                    ending.stop()
                else:
                    scope.cancel()

    async def body() -> None:
        nonlocal result
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: watch(nursery.cancel_scope, task_status))
            ending.hurry = partial(hurry, nursery.cancel_scope, is_answer=is_answer)
            if not hurries_later:
                ending.hurry()
            result = await command(ending)
            nursery.cancel_scope.cancel()

    try:
        trio.run(body, strict_exception_groups=True)
    except BaseException:
        if not caught:
            raise
        logger.debug("while ending", exc_info=True)
    return exit_code(caught[0]) if caught else result or 0


def settled() -> None:
    """Call it when a command stands.  Looks for garbage pass over what there is by now: else each takes tens of milliseconds, in
    which nothing is carried.
    """
    gc.freeze()


async def first_of(
    nursery: trio.Nursery, task: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]], freeze: Callable[[], None]
) -> None:
    """Until one of the two is over; then all that `nursery` runs is.  `freeze` comes before that, if nothing went wrong."""

    async def wait() -> None:
        await task()
        nursery.cancel_scope.cancel()

    nursery.start_soon(wait)
    settled()
    try:
        await end()
    finally:
        freeze()
    nursery.cancel_scope.cancel()


def exit_code(number: int) -> int:
    return 130 if number == signal.SIGINT else 0


def _end_anyway(code: int, patience: float) -> None:
    """A thread of the system's resolver cannot be cancelled and must not hold up the end."""
    timer = threading.Timer(GOODBYE_LIMIT + patience, _leave, [code])
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    """At once, but for the sentences that somebody still reads."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Voice):
            stream.finish(LAST_LOOK)
    os._exit(code)


def hurry(scope: trio.CancelScope, *, is_answer: bool = False) -> None:
    """Stop the traffic from waiting for the reader of the output; a reader that has left ends the command.

    `is_answer`: see Voice.hurry.
    """
    token = trio.lowlevel.current_trio_token()

    def broken() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(scope.cancel)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Voice):
            stream.on_broken = broken
            stream.hurry(is_answer=is_answer)
