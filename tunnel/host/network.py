"""Which network this machine is in, well enough to recognise it: by its router."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import sys
from pathlib import Path
from typing import Final

from tunnel.host.gateway import default_gateway
from tunnel.host.interfaces import ANYWHERE, kernel_text, local_addresses, source_address

NAME_SIZE: Final = 16  # bytes


def network_name(secret: bytes) -> bytes:
    """A digest of the router's hardware address, its IP address and the prefix behind it; NAME_SIZE bytes.

    Many homes share their addresses, so the hardware address counts where the system tells it (Linux).  `secret` keeps whoever
    reads the digest from looking it up.  Reads two small files of the kernel; asks nobody.
    """
    gateway = default_gateway()
    own = gateway.own if gateway is not None else source_address(ANYWHERE[False])
    prefix = ""
    for local in local_addresses():
        if local.address == own:
            prefix = str(ipaddress.ip_interface(f"{local.address}/{local.prefix}").network)
    router = gateway.address if gateway is not None else ""
    words = "\n".join((router, hardware_address(router), prefix))
    return hashlib.blake2s(words.encode(), key=hashlib.sha256(secret).digest(), digest_size=NAME_SIZE).digest()


def hardware_address(host: str) -> str:
    """Of a neighbour that this machine has lately spoken with; "" where that is not known."""
    if sys.platform == "linux" and host:
        return hardware_address_in(kernel_text(Path("/proc/net/arp")), host)
    return ""


def hardware_address_in(table: str, host: str) -> str:
    """From the text of /proc/net/arp; an entry that is not complete is none."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 4 and fields[0] == host:
            with contextlib.suppress(ValueError):
                if int(fields[2], 16) & 0x2:  # ATF_COM
                    return fields[3].lower()
    return ""
