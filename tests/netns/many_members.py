"""A room of as many members as the machine takes, each behind a router of its own, on real kernels.  As root:

`python -m tests.netns.many_members [--members 64] [--keeper]` prints how long until all see one another, and what that costs a
member: memory, processor time, and both at rest.  Then everybody pings everybody, one speaks to all, one plays with all, and one
is removed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Ptunnel, ptunnel, server_address, start_server
from tests.netns.site import Kind

KINDS: Final[tuple[Kind, ...]] = (
    "prc", "open", "fw", "prcrace", "prc", "sym", "uprc", "full", "prc", "cgn", "prc", "prc", "sym", "prc", "prc", "prc",
)  # fmt: skip
EASY: Final[tuple[Kind, ...]] = ("prc", "open", "fw", "prcrace", "uprc", "full")
"""Of the command: those that meet directly, so that what is measured is the room and not the search for hard paths."""
PATIENCE_S: Final = 120.0
SHOUT: Final = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"ptunnel0")
for _ in range({count}):
    s.sendto(b"who plays?", ("255.255.255.255", 9))
    time.sleep(0.2)
"""
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

    @property
    def has_ended(self) -> bool:
        return self.program.process.poll() is not None

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

    @property
    def broadcasts(self) -> int:
        """Datagrams to everybody that its kernel got so far, and that nobody there wanted."""
        names, values = self.site.host.run("grep", "^Udp:", "/proc/net/snmp").stdout.splitlines()
        return int(dict(zip(names.split(), values.split(), strict=True))["IgnoredMulti"])

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


class Party:
    """A room that comes in groups, since all its interpreters start on one machine.

    With a keeper its creator is a host without an interface that relays, and the last two of the others meet in no other way.
    """

    def __init__(self, lab: Lab, count: int, *, has_keeper: bool) -> None:
        self.server = start_server(lab)
        kinds: list[Kind] = [EASY[number % len(EASY)] for number in range(count)]
        if has_keeper:
            kinds[0], kinds[-2:] = "open", ["sym", "sym"]
        self.members = [Member(lab, number, kind) for number, kind in enumerate(kinds)]
        self.creator, *self.others = self.members
        self.players = list(self.others if has_keeper else self.members)
        self.creator.start("create", "--name", "full", *(("--no-interface", "--relay") if has_keeper else ()))
        self.creator.program.wait_event("code", 60)

    def besides(self, member: Member) -> list[Member]:
        return [other for other in self.players if other is not member]

    def come(self, group: int) -> None:
        """All others join; who is told to try again, since the machine was too busy for the code, does so."""
        left, tries = list(self.others), 0
        while left:
            tries += 1
            assert tries <= 2 * len(self.others), left[0].program.said()
            together, code = (
                left[:group],
                [said["code"] for said in self.creator.program.collect() if said["event"] == "code"][-1],
            )
            for member in together:
                member.start("join", code=str(code))
            for member in together:
                eventually(f"{member.name} is in", lambda m=member: m.sees([m]) or m.has_ended, PATIENCE_S, 0.2)
            left = [*left[group:], *(member for member in together if member.has_ended)]
        for member in self.members:
            others = [other for other in self.members if other is not member]
            eventually(f"{member.name} sees all others", lambda m=member, o=others: m.sees(o), PATIENCE_S, 1.0)
        for member in self.members:
            member.address = self.creator.states()[member.name]["address"]

    def answered(self) -> int:
        """Pings of every player to every other one that come back, one player after the other."""
        return sum(len(member.reaches(self.besides(member))) for member in self.players)

    def heard(self, count: int) -> list[int]:
        """Of so many broadcasts of one player, those that each other one has got."""
        sender, *others = self.players
        before = [other.broadcasts for other in others]
        sender.site.host.run("python3", "-c", SHOUT.format(count=count), timeout=60)
        time.sleep(2.0)
        return [other.broadcasts - then for other, then in zip(others, before, strict=True)]

    def play(self) -> tuple[float, float]:
        """A host and each other one exchange 20 datagrams a second: the part that is lost, and the mean round trip (ms)."""
        host, *others = self.players
        asked = "\n".join(f"ping -q -c 200 -i 0.05 -s 120 -W 2 {other.address} &" for other in others)
        said = host.site.host.run("bash", "-c", f"{asked}\nwait", timeout=120).stdout
        came = [int(number) for number in re.findall(r"(\d+) received", said)]
        trips = [float(mean) for mean in re.findall(r"= [\d.]+/([\d.]+)/", said)]
        return 1.0 - sum(came) / (200 * len(others)), statistics.mean(trips)

    def remove(self, member: Member) -> float:
        """Seconds until all others were told that it is gone."""
        began = time.monotonic()
        done = ptunnel(self.creator.site.host, self.creator.program.home, "lan", "remove", member.name, "--json")
        assert done.returncode == 0, done.stdout
        self.members.remove(member)
        self.players.remove(member)
        for other in self.members:
            eventually(f"{other.name} knows", lambda o=other: o.states()[member.name]["state"] == "removed", 60, 0.1)
        return time.monotonic() - began


def measure(lab: Lab, count: int, seconds: float, group: int, *, has_keeper: bool) -> None:
    party = Party(lab, count, has_keeper=has_keeper)
    members, players = party.members, len(party.players)
    alone = party.creator.memory_mb
    began = time.monotonic()
    party.come(group)
    took = time.monotonic() - began
    print(f"{count} members, {group} at a time: all see one another after {took:.0f} s", flush=True)
    print(f"a member took {_spread([member.processor_s for member in members])} s of the processor", flush=True)
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
    print(f"pings: {party.answered()} of {players * (players - 1)} pairs answer", flush=True)
    print(f"of 20 broadcasts the others got {_spread(party.heard(20))}", flush=True)
    lost, trip = party.play()
    print(
        f"a host with {players - 1} players, 20 datagrams a second each: {lost:.2%} lost, {trip:.1f} ms there and back",
        flush=True,
    )
    print(f"removed: all others know after {party.remove(party.players[1]):.1f} s", flush=True)
    if has_keeper:
        one, other = party.players[-2:]
        party.server.kill()
        began = time.monotonic()
        by = f"by way of {party.creator.name}"
        eventually("the keeper carries", lambda: by in one.states()[other.name].get("why", ""), PATIENCE_S, 0.5)
        eventually("they reach each other", lambda: one.reaches([other]), PATIENCE_S, 0.5)
        print(f"the server killed: the keeper carries for two that meet in no other way after {time.monotonic() - began:.0f} s")


def _spread(values: list[float] | list[int]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}, median {statistics.median(values):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--group", type=int, default=4, help="members that start together (4)")
    parser.add_argument("--seconds", type=float, default=30.0, help="until paths are found, and of the look at rest (30)")
    parser.add_argument("--keeper", action="store_true", help="the creator has no interface, and carries for two")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        measure(lab, arguments.members, arguments.seconds, arguments.group, has_keeper=arguments.keeper)


if __name__ == "__main__":
    main()
