"""Standard output and standard error that hold up nobody: what the tunnel carries does not wait for whoever reads its sentences.

A terminal stops reading at Ctrl-S, a pipe when its reader has what it wanted, a disk when it is full.  While a command runs for
long, a thread does the writing; what is not read is kept up to a limit, the newest of it, and the loss is told where it was.
"""

from __future__ import annotations

import contextlib
import errno
import io
import locale
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

MAX_HELD: Final = 262_144  # bytes that wait for a reader; then the oldest go
LAST_WORDS: Final = 1.0  # seconds that the end of a command waits for a reader who makes no progress
_STANDARD: Final = (0, 1, 2)
_GONE: Final = (errno.EPIPE, errno.EBADF)  # nobody will read this any more


def reopen_closed() -> None:
    """Descriptors 0 to 2 that were closed when we were started lead nowhere, instead of becoming sockets of ours."""
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                if null != descriptor:
                    os.dup2(null, descriptor)
                    os.close(null)


def install() -> tuple[Voice, Voice]:
    """Put one in the place of sys.stdout and one in that of sys.stderr, whatever these are."""
    reopen_closed()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    out, err = Voice(1, is_asked_for=True), Voice(2)
    sys.stdout, sys.stderr = out, err
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- as long as the process lives
    return out, err


def notice_of_loss(lines: int) -> str:
    """For people; a stream of JSON has its own (Voice.tell_loss)."""
    return f"ptunnel: {lines} line{' is' if lines == 1 else 's are'} missing here, as nobody read them.\n"


class Voice(io.TextIOBase):
    """A text stream over a descriptor.  At first it writes as any does; from `hurry` on it never waits and never fails.

    `is_asked_for`: the person wants what comes here (standard output).  When its reader goes away, `on_broken` is called, and
    writing raises BrokenPipeError.
    """

    def __init__(self, descriptor: int, *, is_asked_for: bool = False) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._is_asked_for = is_asked_for
        self._encoding = _encoding()
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._lost = 0  # lines, not told yet
        self._written = 0  # pieces, so that progress shows
        self._is_writing = False
        self._is_broken = False
        self._is_answer = False
        self.failure: OSError | None = None  # why an answer could not be written
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.tell_loss: Callable[[int], str] = notice_of_loss
        self.on_broken: Callable[[], None] = lambda: None

    # --- what a text stream is

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Raw:
        """The binary side of this stream, as every text stream has one; click writes shell completions to it."""
        return Raw(self)

    def write(self, text: str, /) -> int:
        """Raises OSError before `hurry` (of standard output alone), and BrokenPipeError."""
        if not isinstance(text, str):
            raise TypeError("this is a stream of text")  # by which others tell it from a binary one
        self.write_bytes(text.encode(self._encoding, "backslashreplace"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Raises as write."""
        if data and self._thread is None:
            self._write_now(data)
        elif data:
            self._hand_over(data)

    def flush(self) -> None:
        """Nothing is held here that could be written at once."""

    # --- the thread

    @property
    def is_idle(self) -> bool:
        """Whether all that was said has been taken: a live picture is only drawn then."""
        return self._thread is None or not (self._waiting or self._is_writing)

    @property
    def is_gone(self) -> bool:
        """Whether whoever reads this has left."""
        return self._is_broken and self.failure is None

    def hurry(self, *, is_answer: bool = False) -> None:
        """From now on somebody else's bytes must not wait for ours.

        `is_answer`: what is said is what the command was run for: nothing of it is given up, and `finish` waits for its reader.
        """
        self._is_answer = is_answer
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"voice {self._descriptor}", daemon=True)
            self._thread.start()

    def finish(self, patience: float | None = None) -> None:
        """Wait until all is written, as long as the reader takes something every `patience` seconds.

        None: LAST_WORDS, and for an answer as long as it takes.
        """
        if self._thread is None:
            return
        if patience is None and not self._is_answer:
            patience = LAST_WORDS
        with self._changed:
            while self._waiting or self._is_writing:
                if not self._changed.wait_for(partial(self._has_moved, self._written), patience):
                    return

    def finish_answer(self) -> None:
        """Wait for the reader of an answer, so that what is said next comes behind it."""
        if self._is_answer:
            with contextlib.suppress(KeyboardInterrupt):  # then it is not waited for
                self.finish()

    def _has_moved(self, before: int) -> bool:
        return self.is_idle or self._written != before

    def _hand_over(self, data: bytes) -> None:
        with self._changed:
            if self._is_broken:
                if self._is_asked_for:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
                return
            self._waiting.append(data)
            self._held += len(data)
            while self._held > MAX_HELD and len(self._waiting) > 1 and not self._is_answer:
                oldest = self._waiting.popleft()
                self._held -= len(oldest)
                self._lost += max(1, oldest.count(b"\n"))
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                lost, self._lost = self._lost, 0
                data = self._waiting.popleft()
                self._held -= len(data)
                self._is_writing = True
            if lost:
                data = self.tell_loss(lost).encode(self._encoding, "backslashreplace") + data
            try:
                self._write_all(data)
            except OSError as error:
                self._failed(error, lost + max(1, data.count(b"\n")))
            self._written += 1

    def _failed(self, error: OSError, lines: int) -> None:
        """A full disk may have room later; a reader that has gone does not come back."""
        with self._changed:
            is_gone = error.errno in _GONE
            if not is_gone and not (self._is_answer and self._is_asked_for):
                self._lost += lines
                return
            if not is_gone:
                self.failure = error
            self._is_broken = True
            self._waiting.clear()
            self._held = 0
        if self._is_asked_for:
            self.on_broken()

    # --- writing

    def _write_now(self, data: bytes) -> None:
        try:
            self._write_all(data)
        except OSError as error:
            self._is_broken = error.errno in _GONE
            if self._is_asked_for:
                raise

    def _write_all(self, data: bytes) -> None:
        """Wait for the reader.  Raises OSError."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # somebody who shares the terminal has made it non-blocking
                select.select((), (self._descriptor,), ())


class Raw(io.RawIOBase):
    """A Voice as a stream of bytes."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        if isinstance(data, str):
            raise TypeError("this is a stream of bytes")
        self._voice.write_bytes(bytes(data))
        return len(data)


def _encoding() -> str:
    """That of the locale; UTF-8 where it is unknown or plain ASCII, which hides no character."""
    name = locale.getpreferredencoding(False)
    try:
        "\u00e9".encode(name)
    except (LookupError, UnicodeEncodeError):
        return "utf-8"
    return name.lower()
