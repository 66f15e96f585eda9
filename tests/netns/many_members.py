"""A room of as many members as the machine takes, each behind a router of its own, on real kernels.  As root:

`python -m tests.netns.many_members [--members 64] [--seconds 30]` prints how long until all see one another, and what that costs
a member: memory, processor time, and both at rest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Ptunnel, server_address, start_server
from tests.netns.site import Kind

KINDS: Final[tuple[Kind, ...]] = (
    "prc", "open", "fw", "prcrace", "prc", "sym", "uprc", "full", "prc", "cgn", "prc", "prc", "sym", "prc", "prc", "prc",
)  # fmt: skip
EASY: Final[tuple[Kind, ...]] = ("prc", "open", "fw", "prcrace", "uprc", "full")
"""Of the command: those that meet directly, so that what is measured is the room and not the search for hard paths."""
HARD: Final = {"sym"}
"""Mapping by destination: two such do not meet, and one needs the birthday technique, for one peer at a time."""


class Member:
    """One process of `lan` behind a router of its own."""

    def __init__(self, lab: Lab, number: int, kind: Kind) -> None:
        self.name = f"m{number:02}"
        self.site: Site = lab.add_site(self.name, kind, hops=2)
        self.site.host.be_a_machine(self.name, lab.folder / f"etc-{self.name}")
        self.kind = kind
        self.address = ""
        self._lab = lab
        self.program: Ptunnel

    def start(self, *words: str, code: str = "") -> None:
        more: dict[str, Any] = {"PTUNNEL_CODE": code} if code else {}
        words = ("lan", *words, "--server", server_address(self._lab), "--as", self.name)
        self.program = Ptunnel(self._lab, self.site.host, f"lan-{self.name}", *words, **more)

    def states(self) -> dict[str, dict[str, Any]]:
        """The newest that was told of every member."""
        return {event["peer"]: event for event in self.program.collect() if event["event"] == "member"}

    def sees(self, others: list[Member]) -> bool:
        states = self.states()
        return all(states.get(other.name, {}).get("state") == "online" for other in others)

    def reaches(self, others: list[Member]) -> set[str]:
        """The names of those that answer a ping; all are asked at once."""
        asked = "\n".join(f"(ping -q -c 2 -i 0.3 -W 3 {other.address} >/dev/null && echo {other.name}) &" for other in others)
        return set(self.site.host.run("bash", "-c", f"{asked}\nwait", timeout=60).stdout.split())

    # what it costs

    @property
    def processor_s(self) -> float:
        """Seconds of the processor that its process has taken so far."""
        fields = Path(f"/proc/{self.program.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_mb(self) -> float:
        lines = Path(f"/proc/{self.program.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000

    def is_direct(self, others: list[Member]) -> int:
        """To how many of these a direct path leads."""
        states = self.states()
        return sum(states.get(other.name, {}).get("kind") == "direct" for other in others)


def measure(lab: Lab, count: int, seconds: float) -> None:
    start_server(lab)
    members = [Member(lab, number, EASY[number % len(EASY)]) for number in range(count)]
    creator, *others = members
    creator.start("create", "--name", "full")
    code = str(creator.program.wait_event("code", 60)["code"])
    alone = creator.memory_mb
    began = time.monotonic()
    for member in others:
        member.start("join", code=code)
    for member in members:
        patience = 30.0 + 10.0 * count
        eventually(f"{member.name} sees all others", lambda m=member: m.sees([o for o in members if o is not m]), patience, 1.0)
    took = time.monotonic() - began
    spent = [member.processor_s for member in members]
    print(
        f"{count} members: all see one another after {took:.0f} s; a member took {_spread(spent)} s of the processor", flush=True
    )
    time.sleep(seconds)
    direct = [member.is_direct([other for other in members if other is not member]) for member in members]
    print(f"direct paths of a member: {_spread(direct)} of {count - 1}", flush=True)
    before, at = [member.processor_s for member in members], time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - at
    rest = [100 * (now - then) / passed for now, then in zip((m.processor_s for m in members), before, strict=True)]
    print(f"at rest a member takes {_spread(rest)} % of a processor", flush=True)
    memory = [member.memory_mb for member in members]
    print(f"memory: {_spread(memory)} MB; the creator alone had {alone:.1f} MB", flush=True)


def _spread(values: list[float] | list[int]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}, median {statistics.median(values):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="until paths are found, and of the look at rest (30)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        measure(lab, arguments.members, arguments.seconds)


if __name__ == "__main__":
    main()
