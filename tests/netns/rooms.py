"""A room of several members, each behind its own router, with an ethernet that has the default route and a neighbour on it."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial

from tests.netns.kernel import LabError, Namespace
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Ptunnel, server_address, start_server
from tests.netns.site import Kind

OUR_MAC = "02:70:74:"
NAMES = ("ada", "bora", "cem")
JOIN_S = 40.0
"""Seconds until all members of a room must reach one another."""


class Member:
    """One member: the machine in a site's first host; the second host is a neighbour, which knows nothing of the room."""

    def __init__(self, lab: Lab, site: Site, name: str) -> None:
        self.lab = lab
        self.site = site
        self.name = name
        self.space: Namespace = site.hosts[0]
        self.neighbour: Namespace = site.hosts[1]
        self.space.be_a_machine(name, lab.folder / f"etc-{name}")
        self.etc = lab.folder / f"etc-{name}"
        self.before = self.traces()
        self.program: Ptunnel | None = None
        self.interface = ""
        self.ipv4 = self.ipv6 = self.link_local = ""

    def traces(self) -> tuple[str, ...]:
        """What ptunnel might leave behind: links, addresses, routes of all tables, rules, tables of nf_tables, hosts file."""
        shown = ["link", "address", "route show table all", "-6 route show table all", "rule", "-6 rule"]
        tables = self.space.run("nft", "list", "tables").stdout
        return (*(self.space.run("ip", *words.split()).stdout for words in shown), tables, (self.etc / "hosts").read_text())

    def left_nothing(self) -> bool:
        return self.traces() == self.before

    def start(self, *words: str, code: str = "") -> Ptunnel:
        """`ptunnel lan WORDS`; with the code that another member was given."""
        words = ("lan", *words, "--server", server_address(self.lab))
        self.program = Ptunnel(self.lab, self.space, f"lan-{self.name}", *words, PTUNNEL_CODE=code)
        return self.program

    def look(self) -> bool:
        """Whether the interface is there with all its addresses, which are noted."""
        for link in json.loads(self.space.run("ip", "-json", "address").stdout):
            if not link.get("address", "").startswith(OUR_MAC) or "UP" not in link["flags"]:
                continue
            found = {(one["family"], one["scope"]): one["local"] for one in link["addr_info"]}
            self.interface = link["ifname"]
            self.ipv4 = found.get(("inet", "global"), "")
            self.ipv6, self.link_local = found.get(("inet6", "global"), ""), found.get(("inet6", "link"), "")
            return bool(self.ipv4 and self.ipv6 and self.link_local)
        return False

    def mtu(self) -> int:
        return int(json.loads(self.space.run("ip", "-json", "link", "show", self.interface).stdout)[0]["mtu"])

    def reaches(self, address: str, *, count: int = 1, wait: float = 1) -> bool:
        words = ["ping", "-q", "-i", "0.2", "-c", str(count), "-W", str(wait), address]
        return self.space.run(*words, check=False).returncode == 0


def open_socket(space: Namespace, family: int = socket.AF_INET, port: int = 0) -> socket.socket:
    made = space.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("", port))
    made.settimeout(5)
    return made


def join_group(sock: socket.socket, group: str) -> None:
    """As most games do: on the interface that the system chooses, which is that of the default route."""
    if sock.family == socket.AF_INET:
        membership = socket.inet_aton(group) + socket.inet_aton("0.0.0.0")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    else:
        packed = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed)


class Room:
    """Members in a room; the first one created it.  `prepare` is called for each before it has anything to do with the room.

    `words` are further ones of everybody's command.
    """

    def __init__(
        self,
        lab: Lab,
        kinds: Sequence[Kind] = ("prc", "prc", "prc"),
        prepare: Callable[[Member], object] = lambda _: None,
        words: Sequence[str] = (),
    ) -> None:
        self.lab = lab
        start_server(lab)
        self.members = [
            Member(lab, lab.add_site(f"home{number}", kind, hosts=2), name)
            for number, (kind, name) in enumerate(zip(kinds, NAMES, strict=False))
        ]
        for member in self.members:
            prepare(member)
        creator, *others = self.members
        self.code = str(creator.start("create", "--name", "game", *words).wait_event("code")["code"])
        for member in others:
            member.start("join", *words, code=self.code)
        for member in self.members:
            self._wait(member, f"the interface of {member.name}", member.look)
        for member in self.members:
            for other in self.members:
                if member is not other:
                    self._wait(member, f"{member.name} reaches {other.name}", partial(member.reaches, other.ipv4))
                    self._wait(member, f"{member.name} knows {other.name}", partial(member.reaches, f"{other.name}.ptunnel"))

    def _wait(self, member: Member, what: str, condition: Callable[[], bool]) -> None:
        try:
            eventually(what, condition, JOIN_S, 0.2)
        except LabError as error:
            assert member.program is not None
            member.program.collect()
            raise member.program.trouble(str(error)) from None


def wait_group(member: Member, group: str) -> None:
    """Until the kernel takes packets to this group in from the room."""
    command = ["ip", "maddress", "show", "dev", member.interface]
    joined = re.compile(rf" {re.escape(group)}( users \d+)?$", re.MULTILINE)
    eventually(f"{group} on {member.interface}", lambda: joined.search(member.space.run(*command).stdout), 5)
