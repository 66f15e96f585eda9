"""The server under load, in a process of its own: where it is, and what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

#: Limits that thousands of clients of one machine would reach; an operator raises them by the settings of the same names.
LIMITS = {
    "max_sessions": 1_000_000,
    "sessions_per_address": 1_000_000,
    "max_room_entries": 4_000_000,
    "rooms_per_address": 4_000_000,
    "max_channels": 1_000_000,
    "channels_per_address": 1_000_000,
    "max_pairs": 1_000_000,
    "pairs_per_address": 1_000_000,
    "requests_per_second": 1e9,
    "request_burst": 1_000_000_000,
}
#: Also runs on trees of earlier versions.
PROGRAM = """
import gc, json, signal, sys
import trio
from tunnel.shell.serve import ServerConfig, serve
try:
    from tunnel.host.collector import tamed
except ImportError:
    from contextlib import nullcontext as tamed
async def main():
    async with trio.open_nursery() as nursery:
        running = await nursery.start(lambda task_status: serve(
            [("127.0.0.1", 0)], config=ServerConfig(**json.loads(sys.argv[1])), task_status=task_status))
        print(running.addresses[0].port, flush=True)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
            async for each in signals:
                if each == signal.SIGTERM:
                    break
                print(json.dumps(running.counters()), flush=True)
        nursery.cancel_scope.cancel()
with tamed():
    trio.run(main)
"""


def times(process: int) -> tuple[float, float]:
    """Seconds of all its threads so far: on a processor, and ready for one that others had."""
    found = [(each / "schedstat").read_text().split() for each in Path(f"/proc/{process}/task").iterdir()]
    return sum(int(each[0]) for each in found) / 1e9, sum(int(each[1]) for each in found) / 1e9


class Host(NamedTuple):
    port: int
    process: subprocess.Popen[str]

    @property
    def cpu(self) -> float:
        """Seconds of all threads so far."""
        return self.times[0]

    @property
    def times(self) -> tuple[float, float]:
        return times(self.process.pid)

    @property
    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def counters(self) -> dict[str, int]:
        import signal

        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        found: dict[str, int] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def serving(tree: str | None, **more: float) -> Iterator[Host]:
    """`tree`: a working tree whose server it is; None: this one."""
    environ = {**os.environ, "PYTHONPATH": tree or os.getcwd()}
    words = [sys.executable, "-c", PROGRAM, json.dumps({**LIMITS, **more})]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ, cwd=tree) as process:
        try:
            assert process.stdout is not None
            yield Host(int(process.stdout.readline()), process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
