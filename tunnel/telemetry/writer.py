"""Writes traces in a thread: a disk that is slow, full or away holds up no connection.

What it does not take is kept up to a limit, the newest of it, and the loss is told where it was.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tunnel.telemetry.qlog import QlogTrace

MAX_UNWRITTEN: Final = 16 * 1024 * 1024  # bytes of all traces that wait for the disk; then the oldest go
LAST_WRITES: Final = 1.0  # seconds that the end waits for a disk that makes no progress


@dataclass(slots=True)
class _Piece:
    sink: QlogTrace
    data: bytes
    is_last: bool


class TraceWriter:
    """One thread for all traces of a folder, begun with the first piece."""

    def __init__(self) -> None:
        self._waiting: deque[_Piece] = deque()
        self._held = 0
        self._lost: Counter[QlogTrace] = Counter()  # bytes, not told yet
        self._written = 0  # pieces, so that progress shows
        self._is_writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, sink: QlogTrace, data: bytes, *, is_last: bool = False) -> None:
        """Never waits."""
        with self._changed:
            self._waiting.append(_Piece(sink, data, is_last))
            self._held += len(data)
            while self._held > MAX_UNWRITTEN and len(self._waiting) > 1:
                self._drop_oldest()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="traces", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # a system that grants no more threads: then there are no traces
                    self._waiting.clear()
                    self._held = 0
                    return
                self._thread = thread
            self._changed.notify_all()

    def finish(self, patience: float = LAST_WRITES) -> None:
        """Wait until all is written, as long as the disk takes something every `patience` seconds."""
        with self._changed:
            while self._waiting or self._is_writing:
                if not self._changed.wait_for(partial(self._has_moved, self._written), patience):
                    return

    def _has_moved(self, before: int) -> bool:
        return self._written != before

    def _drop_oldest(self) -> None:
        """The oldest bytes, never the order to close a file."""
        index = next(index for index, piece in enumerate(self._waiting) if piece.data)
        piece = self._waiting[index]
        self._held -= len(piece.data)
        self._lost[piece.sink] += len(piece.data)
        piece.data = b""
        if not piece.is_last:
            del self._waiting[index]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                piece = self._waiting.popleft()
                self._held -= len(piece.data)
                lost = self._lost.pop(piece.sink, 0)
                self._is_writing = True
            piece.sink.write(piece.data, lost, piece.is_last)
            with self._changed:
                self._written += 1
