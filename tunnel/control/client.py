"""Asks the running processes of one PTUNNEL_HOME, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tunnel.control.messages import (
    MAX_ANSWER,
    Answer,
    Bench,
    Carry,
    Check,
    Invite,
    Join,
    Ping,
    Reach,
    Request,
    Share,
    decode_answer,
    encode_line,
    error,
)
from tunnel.control.sockets import Lines, connect, has_control_sockets, leave, may_ask, socket_path, sweep
from tunnel.errors import MalformedPacket

CODE_PAUSE: Final = 180.0  # seconds: a pairing waits for its server, and where others try the code for their end
SILENCE_LIMIT: Final = 10.0  # seconds without an answer beyond what the request allows; a lost ping is told after 5


def processes(run_dir: Path) -> list[int]:
    """The pids of the processes that can be asked; sockets of dead ones are removed."""
    return sweep(run_dir) if has_control_sockets() else []


async def ask(run_dir: Path, pid: int, request: Request, on_answer: Callable[[Answer], None]) -> None:
    """Hand `on_answer` the answers of one process, without the closing `done`.

    What the process fails to do becomes an `error` answer; one that ends meanwhile says nothing.  An answer that `on_answer`
    cannot take, as of another version, becomes one too.
    """
    try:
        sock = connect(socket_path(run_dir, pid))
    except OSError:
        return
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        if not may_ask(sock, run_dir):
            on_answer(error("foreign_process", f"Process {pid} belongs to another user."))
            return
        try:
            await stream.send_all(encode_line(request))
            with trio.move_on_after(SILENCE_LIMIT) as limit:
                await _take_answers(Lines(stream, MAX_ANSWER), request, limit, on_answer)
            if limit.cancelled_caught:
                on_answer(error("process_silent", f"Process {pid} does not answer."))
        except trio.BrokenResourceError:
            pass
        except MalformedPacket as problem:
            on_answer(error("bad_answer", f"Process {pid} answered something else: {problem}."))


async def _take_answers(lines: Lines, request: Request, limit: trio.CancelScope, on_answer: Callable[[Answer], None]) -> None:
    while True:
        limit.deadline = trio.current_time() + SILENCE_LIMIT + _expected_pause(request)
        line = await lines.next()
        if line is None:
            return
        answer = decode_answer(line)
        if answer["event"] == "done":
            return
        try:
            on_answer(answer)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as problem:
            raise MalformedPacket(f"{answer['event'][:40]!r}, which cannot be read ({type(problem).__name__})") from None
        if answer["event"] == "error":
            return


def _expected_pause(request: Request) -> float:
    """Seconds for which the request itself allows silence."""
    match request:
        case Ping(interval_s=interval_s):
            return interval_s
        case Bench(seconds=seconds):
            return seconds + 10.0  # one transfer is one answer
        case Check(wait_s=wait_s):
            return wait_s
        case Reach():
            return 10.0  # two questions of 3.5 s, and the resolver
        case Join() | Invite():
            return CODE_PAUSE
        case Share() | Carry():
            return math.inf
        case _:
            return 0.0


async def ask_all(run_dir: Path, request: Request, on_answer: Callable[[int, Answer], None]) -> int:
    """Ask every process at once; `on_answer(pid, answer)` as they come.  How many there were."""
    pids = processes(run_dir)
    try:
        async with trio.open_nursery() as nursery:
            for pid in pids:
                nursery.start_soon(ask, run_dir, pid, request, partial(on_answer, pid))
    finally:
        leave(run_dir)
    return len(pids)
