"""`ptunnel` of somebody whose room gets the networks in HOSTILE_SUBNET and HOSTILE_ULA, whatever its members say of theirs."""

from __future__ import annotations

import ipaddress
import os

from tunnel.cli.main import main
from tunnel.room.core import addresses

if __name__ == "__main__":
    subnet = ipaddress.IPv4Network(os.environ["HOSTILE_SUBNET"]).network_address.packed
    addresses.choose_subnet = lambda *_, **__: subnet
    addresses.clashes = lambda *_: False
    if "HOSTILE_ULA" in os.environ:
        ula = ipaddress.IPv6Network(os.environ["HOSTILE_ULA"]).network_address.packed[:8]
        addresses.choose_ula = lambda *_: ula
    main()
