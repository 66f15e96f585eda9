"""A disk, or a file server behind it, that holds up nobody: a thread does what it is asked for, and is waited for a moment only.

What a tunnel carries stands still for as long as its loop waits, and a disk may take seconds (a worn card, another process that
holds the lock) or not come back at all (a server of files that is away).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from tunnel.errors import StateError
from tunnel.units import Seconds

DISK_PATIENCE: Final = Seconds(0.5)  # that the loop waits, once: while a disk is late, nobody waits for it again
MAX_LATE_JOBS: Final = 64  # of a disk that is late, done when it comes back; further ones are not done at all

Result = TypeVar("Result")


class _Job:
    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        self.done.set()


class DiskThread:
    """One thread, begun when it is first needed, which does one thing after the other."""

    def __init__(self, patience: Seconds = DISK_PATIENCE) -> None:
        self._patience = patience
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_late = False

    def ask(self, work: Callable[[], Result], *, also_late: bool = False) -> Result:
        """Return or raise what `work` does.

        Raises StateError when the disk does not answer in time.  With `also_late` the work is done all the same as soon as it
        does; without, perhaps.
        """
        job = _Job(work)
        with self._changed:
            was_late = self._is_late
            if not was_late or (also_late and len(self._waiting) < MAX_LATE_JOBS):
                self._hand_over(job)
        if was_late or not job.done.wait(self._patience):
            with self._changed:
                is_late = not job.done.is_set()
                self._is_late |= is_late and not was_late
            if is_late:
                later = ": this is written as soon as it does" if also_late else ""
                raise StateError(f"The disk has not answered for {self._patience:g} seconds{later}.")
        if job.error is not None:
            raise job.error
        result: Result = job.result
        return result

    def _hand_over(self, job: _Job) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="disk", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a system that grants no more threads
                job.run()
                return
            self._thread = thread
        self._waiting.append(job)
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                job = self._waiting.popleft()
            job.run()
            with self._changed:
                if not self._waiting:
                    self._is_late = False
