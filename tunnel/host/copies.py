"""Signs that this process goes on in a copy of its machine: a snapshot, a checkpoint, a clone of a virtual machine.

A copy has the same keys and counts on from the same numbers, and two datagrams sealed alike tell what is in both.  Three signs:
the calendar and our clock part, as the one is set anew and the other counts on; nothing ran for a while; and Linux says that the
machine's generation has changed (a uevent of its driver vmgenid), where there is a hypervisor that tells it.  A calendar that is
merely set, and a machine that sleeps, look the same.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

import trio

from tunnel.units import Instant, Seconds

#: By which calendar and clock part between two looks.  The largest rate at which a calendar is slewed is 0.1 seconds a second
#: (adjtimex(2)), and we look once a second and before anything is sealed.
STEP: Final = Seconds(0.1)
PAUSE: Final = Seconds(2.5)  # without a look: we did not run, or not here

_KOBJECT_UEVENT: Final = 15  # linux/netlink.h
_FROM_THE_KERNEL: Final = 1  # the group of its own messages; udev's have another
_NEW_GENERATION: Final = b"NEW_VMGENID=1"  # drivers/virt/vmgenid.c
_LARGEST: Final = 8_192  # bytes of a uevent: UEVENT_BUFFER_SIZE is 2,048


def watched(
    clock: Callable[[], Instant], parted: Callable[[Instant, Seconds], None], wall: Callable[[], float] = time.time
) -> Callable[[], Instant]:
    """`clock`, which looks at the calendar too whenever it is read.

    `parted(now, by)` is called before it returns, where the calendar has gained so many seconds (0: nothing ran for a while).
    """
    last = clock()
    apart = wall() - last

    def look() -> Instant:
        nonlocal apart, last
        now = clock()
        before, apart = apart, wall() - now
        if -STEP < apart - before < STEP and now - last < PAUSE:
            last = now
            return now
        return doubt(before)

    def doubt(before: float) -> Instant:
        """Look again: we may have had to wait between a look at the one and at the other."""
        nonlocal apart, last
        since, last = last, clock()
        apart = wall() - last
        if abs(apart - before) >= STEP:
            parted(last, Seconds(apart - before))
        elif last - since >= PAUSE:
            parted(last, Seconds(0.0))
        return last

    return look


def is_new_generation(message: bytes) -> bool:
    """Whether a uevent says that this virtual machine is a copy."""
    return _NEW_GENERATION in message.split(b"\0")


async def watch_generation(copied: Callable[[], None]) -> None:
    """Until cancelled, or nobody tells us any more; at once where nobody does."""
    found = _open_uevents()
    if found is None:
        return
    with found:
        while True:
            await trio.lowlevel.wait_readable(found)
            while True:
                try:
                    message, sender = found.recvfrom(_LARGEST)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        return  # it would be there again at once
                    continue  # there was more than the kernel keeps
                if sender[0] == 0 and is_new_generation(message):  # port 0: the kernel's own
                    copied()


def _open_uevents() -> socket.socket | None:
    if sys.platform != "linux":
        return None
    try:
        found = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _KOBJECT_UEVENT)
    except OSError:
        return None
    try:
        found.setblocking(False)
        found.bind((0, _FROM_THE_KERNEL))
    except OSError:
        found.close()
        return None
    return found
