"""How much of a processor the control groups of this process leave it, as containers and `CPUQuota=` of systemd set it.

Linux only; elsewhere there is no such limit.  Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst (cpu.max),
Documentation/scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

GROUPS: Final = Path("/proc/self/cgroup")
MOUNTED: Final = Path("/sys/fs/cgroup")
V1_FOLDERS: Final = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # of MOUNTED, where the controller of version 1 may be
V2_FOLDERS: Final = ("", "unified")  # the latter where version 1 is mounted beside it


class Quota(NamedTuple):
    """So many seconds of processor time in each period of so many seconds; who has used it up stands still until the next."""

    seconds: float
    period: float

    @property
    def share(self) -> float:
        """In processors."""
        return self.seconds / self.period


def processor_quota(groups: Path = GROUPS, mounted: Path = MOUNTED) -> Quota | None:
    """The tightest one of the groups that this process is in; None where there is none, or nothing tells."""
    try:
        lines = groups.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = [quota for line in lines for folder in _folders(line, mounted) if (quota := _read(folder)) is not None]
    return min(found, key=lambda quota: quota.share, default=None)


def _folders(line: str, mounted: Path) -> Iterator[Path]:
    """Of one line of /proc/PID/cgroup: the group's own and all above it.

    In a container the path may be the host's, and only the uppermost folder is to be seen: it is the container's.
    """
    _number, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    parts = [part for part in path.split("/") if part and part != ".."]
    names = V2_FOLDERS if not controllers else V1_FOLDERS if "cpu" in controllers.split(",") else ()
    for name in names:
        for length in range(len(parts), -1, -1):
            yield mounted.joinpath(name, *parts[:length])


def _read(folder: Path) -> Quota | None:
    with contextlib.suppress(OSError, ValueError):
        most, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return _quota(most, period)
    with contextlib.suppress(OSError, ValueError):
        return _quota(
            (folder / "cpu.cfs_quota_us").read_text(encoding="ascii"), (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        )
    return None


def _quota(most: str, period: str) -> Quota | None:
    """Of two numbers of microseconds; the first is `max` or negative where there is no limit.  Raises ValueError."""
    if most == "max" or int(most) <= 0 or int(period) <= 0:
        return None
    return Quota(int(most) / 1e6, int(period) / 1e6)
