"""A frame of a TAP, and the numbers that go with it.

The unit of work is a frame: 10 bytes of virtio-net header (struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start,
csum_offset, in host byte order), 14 bytes of Ethernet header, then an IP packet of up to 64 KB.

Without ARP the MAC address of a frame that is read says nothing: the kernel puts the interface's own there for every unicast and
broadcast address, and a group's for multicast alone.  In a frame that is written, the interface's own MAC address is right for
every destination, broadcast and multicast included.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tunnel.units import Buffer

VIRTIO_SIZE: Final = 10  # bytes of struct virtio_net_hdr without num_buffers (TUNSETVNETHDRSZ)
ETHERNET_SIZE: Final = 14  # bytes: destination, source, EtherType
HEADROOM: Final = VIRTIO_SIZE + ETHERNET_SIZE  # bytes before the IP packet
MAX_IP_PACKET: Final = 65_535 + 40  # bytes: an IPv6 super-packet's payload length leaves its header out
MAX_FRAME: Final = HEADROOM + MAX_IP_PACKET  # bytes; a smaller view given to read_into cuts a large frame off

#: TUNSETOFFLOAD (linux/if_tun.h): what the kernel may hand us unfinished.
OFFLOAD_CSUM: Final = 1
OFFLOAD_TSO4: Final = 2
OFFLOAD_TSO6: Final = 4
OFFLOAD_USO4: Final = 32
OFFLOAD_USO6: Final = 64

Pieces: TypeAlias = list[Buffer] | list[bytes] | list[bytearray] | list[memoryview]
