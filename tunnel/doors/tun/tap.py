"""The interface of every TAP, the kernel's and the twin in memory, and the numbers that both share.

The unit of work is a frame: 10 bytes of virtio-net header (struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start,
csum_offset, in host byte order), 14 bytes of Ethernet header, then an IP packet of up to 64 KB.

Without ARP the MAC address of a frame that is read says nothing: the kernel puts the interface's own there for every unicast and
broadcast address, and a group's for multicast alone.  In a frame that is written, the interface's own MAC address is right for
every destination, broadcast and multicast included.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol, TypeAlias

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


class TapCounters:
    """Plain integers, so that counting costs nothing; `errors` is by name: an errno, or a reason of our own.

    A reason of our own: `overrun` (memory twin only: its queue was full).
    """

    __slots__ = ("errors", "read_bytes", "read_frames", "written_bytes", "written_frames")

    def __init__(self) -> None:
        self.read_frames = 0
        self.read_bytes = 0
        self.written_frames = 0
        self.written_bytes = 0
        self.errors: Counter[str] = Counter()


class Tap(Protocol):
    """One TAP interface by its descriptor.  It goes away, with its addresses and routes, when the descriptor is closed."""

    @property
    def name(self) -> str:
        """The interface's name."""

    @property
    def offloads(self) -> int:
        """OFFLOAD_* that the kernel agreed to; 0: every frame read is whole, checksummed and no longer than the MTU."""

    @property
    def counters(self) -> TapCounters: ...

    def fileno(self) -> int: ...

    def read_into(self, view: memoryview) -> int:
        """Read one frame that the host sends; its length in bytes, or 0 when there is none now: then wait_readable.

        Raises trio.ClosedResourceError after close, trio.BrokenResourceError when the interface is gone.
        """

    def writev(self, pieces: Pieces) -> bool:
        """Hand the host one frame, given in pieces.  False: would block; wait_writable, then call again.

        True: taken, or refused by the kernel for what it is (EINVAL, EIO ...) and counted in `counters.errors`.
        Raises as read_into does.
        """

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def close(self) -> None:
        """Close now, and again for nothing; a task that waits gets trio.ClosedResourceError."""
