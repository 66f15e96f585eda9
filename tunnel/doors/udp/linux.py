"""The fast socket: UDP_SEGMENT sends, and UDP_GRO receives, up to 64 datagrams with one call.  Linux only.

Source: udp(7), ip(7), ipv6(7), Documentation/networking/segmentation-offloads; the shape is quinn-udp's unix.rs.
"""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from tunnel.doors.udp import pktinfo
from tunnel.doors.udp.addresses import SockAddr
from tunnel.doors.udp.base import (
    BATCH_BUFFER,
    MAX_USELESS,
    RECEIVE_BUFFER,
    SEND_BUFFER,
    BoundSocket,
    segment_count,
)
from tunnel.doors.udp.mmsg import IS_THERE, LOW_BYTE, SOL_UDP, TRUNCATED, write_name
from tunnel.doors.udp.pktinfo import Control
from tunnel.doors.udp.run_reader import Found, RunReader
from tunnel.doors.udp.runs import RunPost
from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS, ReceivedBatch
from tunnel.units import Address

# What the socket module does not name (linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h).
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
IP_TOS: Final = 1
IP_TTL: Final = 2
IP_MTU_DISCOVER: Final = 10
IP_RECVTOS: Final = 13
IP_PMTUDISC_PROBE: Final = 3
IPV6_MTU_DISCOVER: Final = 23
IPV6_HOPLIMIT: Final = 52
IPV6_DONTFRAG: Final = 62
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MEMINFO: Final = 55
_MEMINFO = struct.Struct("=9I")  # the last is SK_MEMINFO_DROPS

_INT = struct.Struct("=i")
_U16 = struct.Struct("=H")
#: What ReceivedBatch(...) does, without its wrapper: half the time.
_new_batch = tuple.__new__
_unpack_int = _INT.unpack


#: Room for the stride (UDP_GRO) and the traffic class, and one more that some later kernel may add.
ANCILLARY_SPACE: Final = 3 * socket.CMSG_SPACE(4)
#: The same with the address that was asked.
ANCILLARY_SPACE_LOCAL: Final = ANCILLARY_SPACE + pktinfo.SPACE
#: Addresses of ours remembered, each with how it is told and asked for.
MAX_LOCALS: Final = 256
#: Control messages remembered, by segment size.
MAX_CONTROLS: Final = 512
#: Views of the receive buffer remembered, by where they begin and end.
MAX_VIEWS: Final = 256
#: Receivers of runs remembered with their sockaddr.
MAX_RUN_NAMES: Final = 64
#: Times in a row that the socket was read until it was empty, and the kernel had joined nothing: then it is read by runs.
LONE: Final = 8
_ALONE: Final[Control] = ()


class LinuxSocket(BoundSocket):
    """See UdpSocket.  `uses_gso` and `uses_gro` tell what the kernel agreed to; GSO is left once it proves broken."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        reuse: bool = False,
        dual_stack: bool = False,
        batch: int = MAX_BATCH,
        tells_local: bool = False,
    ) -> None:
        """`batch` and `tells_local` as for open_socket."""
        super().__init__(host, port, reuse=reuse, dual_stack=dual_stack)
        self._grow_buffers()
        if not self.is_ipv6 or self._dual_stack:
            self._try_option(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            self._try_option(socket.IPPROTO_IP, IP_RECVTOS, 1)
        if self.is_ipv6:
            self._try_option(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            self._try_option(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
            self._try_option(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        self._space = ANCILLARY_SPACE
        if tells_local and host in pktinfo.WILDCARDS:
            self._space = ANCILLARY_SPACE_LOCAL
            pktinfo.ask(self._socket, is_ipv6=self.is_ipv6, is_ipv4=not self.is_ipv6 or self._dual_stack)
        self._locals: dict[bytes, str] = {}  # by what the kernel told
        self._sources: dict[str, Control] = {}
        self.uses_gro = self._try_option(SOL_UDP, UDP_GRO, 1)
        self.uses_gso = self._try_option(SOL_UDP, UDP_SEGMENT, 0)  # 0 changes nothing, but asks whether it is known
        self._controls: dict[int, Control] = {}
        # Bound once: the hot path looks up nothing that does not change.
        self._sendmsg = self._socket.sendmsg
        self._recvmsg_into = self._socket.recvmsg_into
        self._most, self._most_segments = batch, MAX_SEGMENTS * max(1, batch // MAX_BATCH)  # of what receive() hands out
        self._join_until = max(batch - MAX_BATCH, MAX_BATCH // 2)  # bytes of a batch up to which more is received behind it
        # Pages of its own: what nothing has come into takes no memory, and all goes back to the system with the socket.
        self._buffer = memoryview(mmap.mmap(-1, self._join_until + BATCH_BUFFER, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._into = [self._buffer]
        self._views: dict[tuple[int, int], memoryview] = {}
        self._reader: RunReader | None = None  # once there was use for it
        self._reads_runs = False
        self._has_joined = False  # the kernel has, since the socket was empty
        self._lone = 0  # times in a row that it had not
        self._ready: list[Found] = []  # of a run, the next one last; what it points to stands until another is read
        self._sends_runs = IS_THERE
        self._run_post: RunPost | None = None
        self._run_names: dict[SockAddr, bytes] = {}  # of whom runs are sent to
        self._ahead: tuple[SockAddr, int, int, int, int, str] | None = None  # received, but no part of the batch before it
        self._is_drained = False
        self._sockaddrs = self._cache.sockaddrs
        self._addresses = self._cache.addresses

    def _grow_buffers(self) -> None:
        """FORCE needs CAP_NET_ADMIN; without it the kernel cuts what we ask for down to net.core.rmem_max."""
        for force, ask, size, granted in (
            (SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER, self.receive_buffer),
            (SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER, self._option(socket.SO_SNDBUF)),
        ):
            if granted < size and not self._try_option(socket.SOL_SOCKET, force, size):
                self._try_option(socket.SOL_SOCKET, ask, size)

    @property
    def receive_buffer(self) -> int:
        """Bytes.  getsockopt reports twice what was granted, the other half being the kernel's own overhead: socket(7)."""
        return self._option(socket.SO_RCVBUF) // 2

    def overruns(self) -> int:
        """SK_MEMINFO_DROPS: a counter of the kernel, so it costs the receive path nothing."""
        try:
            info = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
        except OSError:
            return 0
        return int(_MEMINFO.unpack(info)[8]) if len(info) == _MEMINFO.size else 0

    # -- sending

    def send(
        self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0, source: str = ""
    ) -> bool:
        length = len(buffer)
        sockaddr = self._sockaddrs.get(remote) or self._resolve(remote)
        if sockaddr is None:
            return True
        if length <= segment_size:
            count = 1 if 0 < length <= MAX_BATCH else segment_count(length, segment_size)
            control = _ALONE
        else:
            count = segment_count(length, segment_size)
            if not self.uses_gso or self._unfinished is not None:
                return self._send_each(remote, sockaddr, buffer, segment_size, ttl, ecn, source)[0]
            control = self._controls.get(segment_size) or self._segment_control(segment_size)
        if ttl is not None or ecn:
            control += self._header_control(sockaddr, ttl, ecn)
        if source:
            control += self._sources.get(source) or self._source_control(source)
        counters = self.counters
        try:
            self._sendmsg((buffer,), control, 0, sockaddr)
        except BlockingIOError:
            return False
        except OSError as error:
            if source and error.errno in (errno.EINVAL, errno.EADDRNOTAVAIL):  # that address has left us
                return self.send(remote, buffer, segment_size, ttl, ecn)
            if count > 1 and error.errno in (errno.EIO, errno.EINVAL):
                return self._send_without_gso(error, remote, sockaddr, buffer, segment_size, ttl, ecn, source)
            self._count_error(error)
            return True
        counters.sent_datagrams += count
        counters.sent_bytes += length
        return True

    def _send_without_gso(
        self,
        refusal: OSError,
        remote: Address,
        sockaddr: SockAddr,
        buffer: memoryview,
        segment_size: int,
        ttl: int | None,
        ecn: int,
        source: str,
    ) -> bool:
        """EIO: no checksum offload on the way, or IPsec.  EINVAL: an old kernel, or before 5.19 a segment over the MTU."""
        self.counters.errors["no_gso"] += 1
        done, errors = self._send_each(remote, sockaddr, buffer, segment_size, ttl, ecn, source)
        if refusal.errno == errno.EIO or "EMSGSIZE" not in errors:
            self.uses_gso = False
        return done

    def _send_one(self, datagram: memoryview, sockaddr: SockAddr, ttl: int | None, ecn: int, source: str) -> None:
        control = _ALONE if ttl is None and not ecn else self._header_control(sockaddr, ttl, ecn)
        if source:
            control += self._sources.get(source) or self._source_control(source)
        self._sendmsg((datagram,), control, 0, sockaddr)

    def _sending(
        self, sockaddr: SockAddr, buffer: memoryview, segment_size: int, ttl: int | None, ecn: int, source: str
    ) -> Callable[[int], int]:
        if not self._sends_runs or ttl is not None or ecn or source or len(buffer) <= segment_size or buffer.readonly:
            return super()._sending(sockaddr, buffer, segment_size, ttl, ecn, source)
        if self._run_post is None:
            self._run_post = RunPost(MAX_SEGMENTS)
        name = self._run_names.get(sockaddr) or self._run_name(sockaddr)
        return partial(self._run_post.send, self._socket.fileno(), name, buffer, segment_size)

    def _run_name(self, sockaddr: SockAddr) -> bytes:
        """The kernel's form of it."""
        if len(self._run_names) >= MAX_RUN_NAMES:
            self._run_names.clear()
        name = self._run_names[sockaddr] = write_name(sockaddr, is_ipv6=self.is_ipv6)
        return name

    def _segment_control(self, segment_size: int) -> Control:
        control: Control = ((SOL_UDP, UDP_SEGMENT, _U16.pack(segment_size)),)
        if len(self._controls) >= MAX_CONTROLS:
            self._controls.clear()
        self._controls[segment_size] = control
        return control

    def _header_control(self, sockaddr: SockAddr, ttl: int | None, ecn: int) -> Control:
        """Fields of the IP header.  An IPv4-mapped destination on an IPv6 socket takes IPv4's own: udpv6_sendmsg."""
        is_ipv4 = not self.is_ipv6 or sockaddr[0].startswith("::ffff:")
        level, hops, traffic = (
            (socket.IPPROTO_IP, IP_TTL, IP_TOS) if is_ipv4 else (socket.IPPROTO_IPV6, IPV6_HOPLIMIT, IPV6_TCLASS)
        )
        control: Control = ()
        if ttl is not None:
            control += ((level, hops, _INT.pack(ttl)),)
        if ecn:
            control += ((level, traffic, _INT.pack(ecn & 3)),)
        return control

    def _source_control(self, source: str) -> Control:
        if len(self._sources) >= MAX_LOCALS:
            self._sources.clear()
        control = self._sources[source] = pktinfo.leave_from(source)
        return control

    def _local_of(self, told: bytes) -> str:
        if len(self._locals) >= MAX_LOCALS:
            self._locals.clear()
        local = self._locals[told] = pktinfo.local_of(told)
        return local

    # -- receiving

    def receive(self) -> ReceivedBatch | None:
        """Datagrams that the kernel did not join are joined here: what comes after costs a call a batch, not a datagram."""
        if self._ready:
            return self._batch(self._ready.pop())
        found, self._ahead = self._ahead, None
        if found is None:
            if self._is_drained:
                self._is_drained = False
                return None
            if self._reads_runs:
                return self._receive_run()
            found = self._receive_at(0)
            if found is None:
                return None
        sockaddr, start, end, stride, ecn, local = found
        while end <= self._join_until and (end - start) % stride == 0:
            more = self._receive_at(end)
            if more is None:
                self._is_drained = True  # saves the next call; what comes meanwhile wakes whoever waits
                self._read_runs(stride)
                break
            after, size = more[2], more[3]
            if (
                size > stride
                or (size < stride and after - end > size)
                or more[4] != ecn
                or more[5] != local
                or after - start > self._most
                or after - start > self._most_segments * stride
                or more[0] != sockaddr
            ):
                self._ahead = more
                break
            end = after
        remote = self._addresses.get(sockaddr) or self._cache.address(sockaddr)
        return _new_batch(ReceivedBatch, (remote, self._views.get((start, end)) or self._view(start, end), stride, ecn, local))

    def _batch(self, found: Found) -> ReceivedBatch:
        sockaddr, view, stride, ecn, local = found
        remote = self._addresses.get(sockaddr) or self._cache.address(sockaddr)
        return _new_batch(ReceivedBatch, (remote, view, stride, ecn, local))

    def _read_runs(self, stride: int) -> None:
        """The socket is empty.  Shall it be read by runs from now on?  Not where the kernel joins what comes."""
        self._lone = 0 if self._has_joined else self._lone + 1
        self._has_joined = False
        if self._lone < LONE or not IS_THERE:
            return
        if self._reader is None:
            most = self._most, self._most_segments
            self._reader = RunReader(
                self._buffer, most, is_ipv6=self.is_ipv6, space=self._space, local_of=self._local_of, view=self._view
            )
        self._reader.set_stride(stride)
        self._reads_runs = True

    def _receive_run(self) -> ReceivedBatch | None:
        reader = self._reader
        assert reader is not None
        for _ in range(MAX_USELESS):
            try:
                found = reader.read(self._socket.fileno(), self.counters)
            except OSError as error:
                if self._count_error(error) == "closed":
                    return None
                continue
            if found:
                self._is_drained = reader.is_drained
                if reader.has_joined:
                    reader.rest()
                    self._reads_runs = False
                    self._lone = 0
                found.reverse()
                self._ready = found
                return self._batch(found.pop())
            if reader.is_drained:
                return None
        return None

    def _view(self, start: int, end: int) -> memoryview:
        """The same object every time that this part is asked for: who cuts it up can keep the pieces."""
        if len(self._views) >= MAX_VIEWS:
            del self._views[next(iter(self._views))]  # the oldest
        view = self._views[start, end] = self._buffer[start:end]
        return view

    def _receive_at(self, at: int) -> tuple[SockAddr, int, int, int, int, str] | None:
        """One call into the kernel: sender, from where to where in the buffer, stride, ECN, address of ours."""
        counters = self.counters
        into = self._into if not at else [self._buffer[at:]]
        for _ in range(MAX_USELESS):
            try:
                length, ancillary, flags, sockaddr = self._recvmsg_into(into, self._space)
            except BlockingIOError:
                return None
            except OSError as error:
                if self._count_error(error) == "closed":
                    return None
                continue
            if not length or flags & TRUNCATED:
                counters.errors["truncated" if length else "empty"] += 1
                continue
            stride = length
            ecn = 0
            local = ""
            for level, _kind, data in ancillary:
                if level == SOL_UDP:
                    (stride,) = _unpack_int(data)
                elif len(data) >= pktinfo.SMALLEST:
                    local = self._locals.get(data) or self._local_of(data)
                else:
                    ecn = data[LOW_BYTE] & 3
            counters.received_bytes += length
            if 0 < stride < length:
                counters.received_datagrams += -(-length // stride)
                self._has_joined = True
            else:
                stride = length
                counters.received_datagrams += 1
            return sockaddr, at, at + length, stride, ecn, local
        return None
