"""The socket of a server on Linux: one call for all that came, from whomever, and one for the answers.  See BatchSocket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tunnel.doors.udp import mmsg
from tunnel.doors.udp.addresses import AddressError, to_address, to_sockaddr
from tunnel.doors.udp.batches import Letter
from tunnel.doors.udp.linux import LinuxSocket
from tunnel.doors.udp.mmsg import NAME4, NAME6, TRUNCATED
from tunnel.doors.udp.socket import ReceivedBatch
from tunnel.units import Address, Buffer

MOST: Final = 64  # messages of one call; 256 gain nothing more
LARGE: Final = 131_072  # bytes of one call, and fewer messages are asked for: bursts that were joined shall stay in the cache
MAX_NAMES: Final = 8_192  # senders remembered with their sockaddr; then all are forgotten, which takes a millisecond
MAX_TOLD: Final = 512  # kinds of control messages remembered; likewise
_new_batch = tuple.__new__  # what ReceivedBatch(...) does, without its wrapper


class ManySocket(LinuxSocket):
    """Linux with recvmmsg and sendmmsg."""

    def __init__(self, host: str, port: int, *, reuse: bool = False, tells_local: bool = False) -> None:
        super().__init__(host, port, reuse=reuse, tells_local=tells_local)
        self._name_size = NAME6.size if self.is_ipv6 else NAME4.size
        self._inbox = mmsg.Inbox(MOST, self._name_size, self._space)
        self._post = mmsg.Post(MOST, self._name_size)
        self._name_places = [slice(at, at + self._name_size) for at in range(0, MOST * self._name_size, self._name_size)]
        self._ask_for = MOST  # messages
        self.is_drained = True
        self._hosts: dict[bytes, Address] = {}  # by sockaddr
        self._names: dict[Address, bytes] = {}
        self._told: dict[bytes, tuple[int, int, str]] = {}  # stride, ECN, address of ours
        self._headers: dict[tuple[bool, int, str], bytes] = {}  # control messages to send with
        self._delivered = 0  # of those that were posted

    # -- receiving

    def receive_many(self) -> list[ReceivedBatch]:
        inbox, counters = self._inbox, self.counters
        asked = self._ask_for
        try:
            count = inbox.receive(self._socket.fileno(), asked)
        except OSError as error:  # an ICMP error, for example; what came is still there
            self.is_drained = self._count_error(error) == "closed"
            return []
        self.is_drained = count < asked
        if not count:
            return []
        lengths = inbox.lengths[:count].tolist()
        total = sum(lengths)
        self._ask_for = min(MOST, 2 * asked) if total < LARGE else max(2, asked // 2)
        space, places = self._space, self._name_places
        data, controls = inbox.data, inbox.controls[: count * space].tobytes()
        names = inbox.names[: count * self._name_size].tobytes()
        hosts, told = self._hosts, self._told
        are_odd = any(inbox.flags[:count].tolist()) or not all(lengths)
        batches: list[ReceivedBatch] = []
        datagrams = count
        for index, (length, control_length) in enumerate(zip(lengths, inbox.control_lengths[:count].tolist(), strict=True)):
            start = index * mmsg.SLOT
            name = names[places[index]]
            control = controls[index * space : index * space + control_length]
            stride, ecn, local = told.get(control) or self._read(control)
            if are_odd and (not length or inbox.flags[index] & TRUNCATED):
                counters.errors["truncated" if length else "empty"] += 1
                datagrams -= 1
                total -= length
                continue
            if not 0 < stride < length:
                stride = length
            else:
                datagrams += (length - 1) // stride
            remote = hosts.get(name) or self._host(name)
            batches.append(_new_batch(ReceivedBatch, (remote, data[start : start + length], stride, ecn, local)))
        counters.received_datagrams += datagrams
        counters.received_bytes += total
        return batches

    def _read(self, control: bytes) -> tuple[int, int, str]:
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        found = self._told[control] = mmsg.read_told(control, lambda data: self._locals.get(data) or self._local_of(data))
        return found

    def _host(self, name: bytes) -> Address:
        address = to_address(mmsg.read_name(name))
        self._remember(address, name)
        return address

    def _remember(self, address: Address, name: bytes) -> None:
        if len(self._names) >= MAX_NAMES or len(self._hosts) >= MAX_NAMES:
            self._names.clear()
            self._hosts.clear()
        self._hosts[name] = address
        self._names[address] = name

    # -- sending

    def post(self, remote: Address, buffer: Buffer, segment_size: int, ecn: int = 0, source: str = "") -> bool:
        size, post = len(buffer), self._post
        if size > segment_size or size > mmsg.LETTER:  # a burst is worth a call of its own
            if post.count and not self.deliver():
                return False
            return self.send(remote, memoryview(buffer), segment_size, None, ecn, source)
        if post.count == MOST and not self.deliver():
            return False
        name = self._names.get(remote) or self._name(remote)
        if name is not None:
            control = b""
            if ecn or source:
                key = (not self.is_ipv6 or ":" not in remote.host, ecn, source)
                control = self._headers.get(key) or self._header(*key)
            post.put(name, buffer, control)
        return True

    def post_all(self, letters: Iterable[Letter], source: str = "") -> int:
        post, names, lost = self._post, self._names, 0
        for _, remote, data in letters:
            if post.count == MOST or len(data) > mmsg.LETTER:
                lost += not self.post(remote, data, len(data), 0, source)
                continue
            name = names.get(remote) or self._name(remote)
            if name is not None:
                control = b""
                if source:
                    key = (not self.is_ipv6 or ":" not in remote.host, 0, source)
                    control = self._headers.get(key) or self._header(*key)
                post.put(name, data, control)
        return lost

    def _name(self, remote: Address) -> bytes | None:
        try:
            sockaddr = to_sockaddr(remote, is_ipv6=self.is_ipv6, dual_stack=False)
        except AddressError as error:
            self.counters.errors[str(error)] += 1
            return None
        name = mmsg.write_name(sockaddr, is_ipv6=self.is_ipv6)
        self._remember(remote, name)
        return name

    def _header(self, is_ipv4: bool, ecn: int, source: str) -> bytes:
        if len(self._headers) >= MAX_TOLD:
            self._headers.clear()
        control = self._header_control(("::ffff:0.0.0.0" if is_ipv4 else "::", 0), None, ecn)
        if source:
            control += self._sources.get(source) or self._source_control(source)
        found = self._headers[is_ipv4, ecn, source] = mmsg.write_control(control)
        return found

    def deliver(self) -> bool:
        post, counters = self._post, self.counters
        while self._delivered < post.count:
            first = self._delivered
            try:
                sent = post.send(self._socket.fileno(), first)
            except BlockingIOError:
                return False
            except OSError:  # the way for one datagram alone says what to do about it
                name, control, datagram = post.name(first), post.control(first), post.datagram(first)
                remote = self._hosts.get(name) or self._host(name)
                _, ecn, source = next((key for key, made in self._headers.items() if made is control), (False, 0, ""))
                if not self.send(remote, datagram, len(datagram), None, ecn, source):
                    return False
                self._delivered += 1
            else:
                self._delivered += sent
                counters.sent_datagrams += sent
                counters.sent_bytes += post.size(first, sent)
        self._forget()
        return True

    def give_up(self) -> int:
        left = self._post.count - self._delivered
        self._forget()
        return left

    def _forget(self) -> None:
        self._post.count = self._delivered = 0
