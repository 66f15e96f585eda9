"""Whether a firewall of this machine keeps the room out.  It is tried, since rules are only read by root and understood by few.

A datagram as a member would send it is handed in by the LAN interface, to a port of ours.  Who lets in single ports keeps this
one out, so the sentence speaks of the others.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Final

import trio

from tunnel.doors.tun.config import MAC_PREFIX, InterfaceConfig
from tunnel.doors.tun.device import TapDevice
from tunnel.doors.tun.reflector import checksum_of

TRIES: Final = 3  # datagrams, should one be lost
PATIENCE: Final = 1.0  # seconds for each; the kernel hands it over at once
_MARK: Final = 16  # random bytes, by which it is known
_UDP: Final = 17

_SERVICES: Final = "etc/systemd/system"
#: What says that a firewall is switched on: a file, and a line of it (none: it is a link); and the command that lets the room in.
KNOWN: Final = (
    ("etc/ufw/ufw.conf", "ENABLED=yes", "sudo ufw allow in on {interface}"),
    (
        f"{_SERVICES}/multi-user.target.wants/firewalld.service",
        "",
        "sudo firewall-cmd --zone=trusted --add-interface={interface}",
    ),
    (
        f"{_SERVICES}/sysinit.target.wants/nftables.service",
        "",
        "sudo nft insert rule inet filter input iifname {interface} accept",
    ),
)


async def is_shut(device: TapDevice, config: InterfaceConfig) -> bool:
    """Whether what a member sends does not arrive; False where there is no IPv4 address to try it with."""
    if config.ipv4 is None:
        return False
    own = ipaddress.IPv4Address(config.ipv4[0])
    network = ipaddress.IPv4Network(config.ipv4, strict=False)
    other = next(each for each in (network[-2], network[-3]) if each != own)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as ear:
        try:
            ear.bind((str(own), 0))
        except OSError:
            return False  # the interface has not got it, since the network is in use elsewhere
        for _ in range(TRIES):
            mark = os.urandom(_MARK)
            packet = _datagram(other.packed, own.packed, ear.getsockname()[1], mark)
            device.writev([bytes(10), bytes.fromhex(config.mac.replace(":", "")) + MAC_PREFIX + b"\0\0\0\x08\0", packet])
            with trio.move_on_after(PATIENCE):
                while True:
                    await trio.lowlevel.wait_readable(ear)
                    with contextlib.suppress(BlockingIOError):
                        if ear.recv(_MARK + 1) == mark:
                            return False
    return True


def sentence(interface: str, root: Path = Path("/")) -> str:
    """Return the sentence for a person, with the command of the firewall that is found."""
    told = "A firewall of this machine keeps out what comes from the room, but for ports that you have opened there. "
    for place, words, command in KNOWN:
        with contextlib.suppress(OSError):
            path = root / place
            if (words in path.read_text(encoding="utf-8", errors="replace").splitlines()) if words else path.is_symlink():
                return f"{told}To let all of it in:  {command.format(interface=interface)}"
    return f"{told}To let all of it in, have its rules accept what comes in by {interface}."


def _datagram(source: bytes, target: bytes, port: int, payload: bytes) -> bytes:
    """An IPv4 packet; its UDP checksum is left out, as RFC 768 allows."""
    udp = struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, _UDP, 0) + source + target
    return head[:10] + struct.pack("!H", checksum_of(head)) + head[12:] + udp
