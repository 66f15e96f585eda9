"""From what runs.py received to the batches that one call for each datagram would have made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from tunnel.doors.udp.addresses import MAX_CACHED, SockAddr
from tunnel.doors.udp.mmsg import NAME4, NAME6, TRUNCATED, read_name, read_told
from tunnel.doors.udp.runs import SPILL, RunInbox
from tunnel.doors.udp.socket import UdpCounters

LARGEST_SLOT: Final = 9_000  # bytes: what jumbo frames carry, and many of them fit into one call
ENOUGH: Final = 4  # datagrams in one call that are equally long: those to come will be, too
MAX_TOLD: Final = 256  # kinds of control messages remembered; then all are forgotten

Found: TypeAlias = tuple[SockAddr, memoryview, int, int, str]  # sender, datagrams, stride, ECN, address of ours


class RunReader:
    """Of one socket: reads runs into its buffer."""

    def __init__(
        self, buffer: memoryview, most: tuple[int, int], *, is_ipv6: bool, space: int, local_of: Callable[[bytes], str],
        view: Callable[[int, int], memoryview],
    ) -> None:  # fmt: skip
        """`most` bytes and datagrams of a batch; `space` for control messages; `view` gives a part of the buffer."""
        self._buffer, self._view = buffer, view
        self._most, self._most_segments = most
        self._space = space
        self._local_of = local_of
        self._name_size = NAME6.size if is_ipv6 else NAME4.size
        self._inbox = RunInbox(buffer, self._most_segments, self._name_size, space)
        self._senders: dict[bytes, SockAddr] = {}
        self._told: dict[bytes, tuple[int, int, str]] = {}
        self.is_drained = False  # nothing was left
        self.has_joined = False  # the kernel does join datagrams after all

    def rest(self) -> None:
        """It is not read by runs for a while: what long datagrams came into goes back to the system."""
        self.has_joined = False
        self._inbox.rest()

    def set_stride(self, stride: int) -> None:
        """Expect datagrams of that size."""
        self._inbox.set_stride(min(stride, LARGEST_SLOT))

    def read(self, descriptor: int, counters: UdpCounters) -> list[Found]:
        """Return the batches of one call, in order; empty when there was nothing.  Raises OSError."""
        inbox = self._inbox
        count = inbox.receive(descriptor)
        self.is_drained = count < inbox.most
        if not count:
            return []
        lengths = inbox.lengths[:count].tolist()
        name = bytes(inbox.names[: self._name_size])
        control = bytes(inbox.controls[: inbox.control_lengths[0]])
        stride, ecn, local = self._told.get(control) or self._tell(control)
        size = inbox.stride
        last = lengths[-1]
        if (
            not stride
            and (count == 1 or lengths.count(size) >= count - (last < size))
            and 0 < last <= size
            and not any(inbox.flags[:count])
            and (count == 1 or self._are_alike(count, name, control))
            and (count - 1) * size + last <= self._most
        ):
            counters.received_datagrams += count
            counters.received_bytes += (count - 1) * size + last
            view = self._view(0, (count - 1) * size + last)
            return [(self._senders.get(name) or self._sender(name), view, size if count > 1 else last, ecn, local)]
        found = self._cut(count, lengths, counters)
        inbox.clear_controls()
        first, longest = lengths[0], max(lengths)
        if longest > size:
            self.set_stride(longest)
        elif count >= ENOUGH and first != size and lengths.count(first) >= count - 1:
            self.set_stride(first)
        return found

    def _are_alike(self, count: int, name: bytes, control: bytes) -> bool:
        """Whether all have the sender and the control messages of the first."""
        inbox, space = self._inbox, self._space
        if bytes(inbox.names[: count * self._name_size]) != name * count:
            return False
        if inbox.control_lengths[:count].tolist() != [len(control)] * count:
            return False
        return bytes(inbox.controls[: count * space]) == bytes(inbox.controls[:space]) * count

    def _cut(self, count: int, lengths: list[int], counters: UdpCounters) -> list[Found]:
        """Join what may be joined: of one sender, equally long but for the last, with equal control messages."""
        inbox, buffer, slot, space, name_size = self._inbox, self._buffer, self._inbox.stride, self._space, self._name_size
        found: list[Found] = []
        start = end = -1  # of the batch under way, in the buffer; what is moved there lies behind
        step, head = 0, (b"", b"")
        for index, length in enumerate(lengths):
            if not length or inbox.flags[index] & TRUNCATED:
                counters.errors["truncated" if length else "empty"] += 1
                continue
            name = bytes(inbox.names[index * name_size : (index + 1) * name_size])
            control = bytes(inbox.controls[index * space : index * space + inbox.control_lengths[index]])
            stride, ecn, local = self._told.get(control) or self._tell(control)
            counters.received_bytes += length
            counters.received_datagrams += -(-length // stride) if 0 < stride < length else 1
            at = index * slot
            sender = self._senders.get(name) or self._sender(name)
            if length > slot or 0 < stride < length:
                self.has_joined |= 0 < stride < length
                spill, rest = index * SPILL, max(0, length - slot)
                data = bytearray(buffer[at : at + length - rest]) + inbox.spills[spill : spill + rest]
                found.append((sender, memoryview(data), stride if 0 < stride < length else length, ecn, local))
                step = 0
                continue
            if (
                step
                and head == (name, control)
                and length <= step
                and (end - start) % step == 0
                and end + length - start <= min(self._most, self._most_segments * step)
            ):
                if end != at:
                    buffer[end : end + length] = buffer[at : at + length]
                end += length
                found[-1] = (sender, buffer[start:end], step, ecn, local)
                continue
            start, end, step, head = at, at + length, length, (name, control)
            found.append((sender, buffer[start:end], step, ecn, local))
        return found

    def _sender(self, name: bytes) -> SockAddr:
        if len(self._senders) >= MAX_CACHED:
            self._senders.clear()
        found = self._senders[name] = read_name(name)
        return found

    def _tell(self, control: bytes) -> tuple[int, int, str]:
        """Stride (0: it is one datagram), ECN and address of ours."""
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        found = self._told[control] = read_told(control, self._local_of)
        return found
