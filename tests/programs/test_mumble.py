"""Mumble: its server, announced by mDNS, is found in a room by both families, and answers by UDP and by TLS."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.programs import START_S, Program, environment
from tests.netns.rooms import Member, Room
from tests.netns.sharing import Responder
from tests.programs.homes import SLOW_S, needs

pytestmark = [pytest.mark.nightly, needs("murmurd", "dbus-daemon", "avahi-daemon", "avahi-browse")]

PORT = 64738
VERSION, AUTHENTICATE, PING, SERVER_SYNC, TEXT = 0, 2, 3, 5, 11  # messages of the voice protocol
SETTINGS = """database=%(folder)s/murmur.sqlite
logfile=
pidfile=
port=%(port)d
bonjour=true
registerName=lab
users=10
uname=root
"""


def _ping_by_udp(member: Member, address: str) -> None:
    """What Mumble's list of servers asks every server that it has found."""
    ipv6 = ":" in address
    token = os.urandom(8)
    with member.space.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) as sock:
        sock.settimeout(START_S)
        sock.sendto(bytes(4) + token, (address, PORT))
        answer = sock.recv(100)
    assert answer[4:12] == token
    assert struct.unpack(">3I", answer[12:24])[1] == 10  # users allowed


def _join(member: Member, address: str, name: str) -> None:
    """Until the server says that all about it has been told, which it does for who is in."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # its certificate is its own, as always on a LAN
    raw = member.space.socket(socket.AF_INET, socket.SOCK_STREAM)
    raw.settimeout(SLOW_S)
    raw.connect((address, PORT))
    with context.wrap_socket(raw) as sock:
        version = b"\x08" + b"\x80\x86\x04"  # 1.3.0
        who = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x28\x01"
        for kind, body in ((VERSION, version), (AUTHENTICATE, who)):
            sock.sendall(struct.pack(">HI", kind, len(body)) + body)
        seen = b""
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end:
            seen += sock.recv(65_536)
            while len(seen) >= 6 and len(seen) >= 6 + struct.unpack_from(">HI", seen)[1]:
                kind, length = struct.unpack_from(">HI", seen)
                seen = seen[6 + length :]
                if kind == SERVER_SYNC:
                    return
    raise AssertionError("the server has not let us in")


def test_a_server_is_found_by_mdns_and_joined(lab: Lab) -> None:
    at: dict[str, Responder] = {}

    def prepare(member: Member) -> None:
        at[member.name] = Responder(lab, member.space, member.name)

    host, friend = Room(lab, ("prc", "prc"), prepare).members
    settings = lab.folder / "murmur.ini"
    settings.write_text(SETTINGS % {"folder": lab.folder, "port": PORT}, encoding="ascii")
    server = Program(
        lab, host.space, "murmurd", ["/usr/sbin/murmurd", "-fg", "-ini", settings], env=environment(lab.folder / "murmur")
    )
    server.wait_said("Server listening on")

    def found() -> set[str]:
        return {one[3] for one in at[friend.name].services("_mumble._tcp") if one[0] == friend.interface}

    eventually("both families", lambda: {":" in address for address in found()} == {True, False}, SLOW_S)
    assert host.ipv4 in found()
    for address in (host.ipv4, host.ipv6):
        _ping_by_udp(friend, address)
    address = friend.space.run("getent", "ahostsv4", f"{host.name}.ptunnel").stdout.split()[0]
    _join(friend, address, "friend")
    server.wait_said("friend", SLOW_S)
