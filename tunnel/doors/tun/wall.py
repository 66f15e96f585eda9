"""The packet filter of the LAN interface: packets to our own addresses come in, and only our own NAT may send them on.

Containers publish their ports by NAT: a packet to our address gets another destination and is forwarded.  So the interface has to
forward, but nothing else.  Two chains of nf_tables see to that.  Before anything is translated, a packet has to be for one of our
addresses or for everybody, and from the room.  Where packets are forwarded, one that still has such a destination was not
translated, and is dropped.  No rule looks at connections, so none are tracked that were not before.

The table belongs to its netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): it goes when the last process that holds the socket ends,
whichever way, and nobody else's `nft flush ruleset` takes it away.
Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, netlink(7).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Final

from tunnel.doors.tun.config import InterfaceConfig
from tunnel.errors import ConfigurationError

ANSWER_TIMEOUT: Final = 2.0  # seconds; the kernel answers at once, or after it has loaded nf_tables
_BUFFER: Final = 1 << 16

_NETLINK_NETFILTER: Final = 12  # linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_APPEND = 0x1, 0x4, 0x400, 0x800
_NLA_F_NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ERROR: Final = struct.Struct("=iIHHII")  # nlmsgerr: code, and the header of the message that it is about
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE, _DELRULE = 0, 3, 6, 8
_INET: Final = 1  # NFPROTO_INET: both families
_IPV4, _IPV6 = 2, 10  # what `meta nfproto` gives
_OWNER: Final = 2  # NFT_TABLE_F_OWNER
_PREROUTING, _FORWARD = 0, 2  # NF_INET_*
_FIRST: Final = -450  # NF_IP_PRI_RAW_BEFORE_DEFRAG: before any translation
_FILTER: Final = 0  # NF_IP_PRI_FILTER
_IIF, _NFPROTO = 4, 15  # NFT_META_*
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5  # NFT_CMP_*
_DROP, _ACCEPT = 0, 1  # NF_*
_REGISTER: Final = 1  # NFT_REG_1; 0 is the verdict's
_GROUPS4: Final = b"\xe0"  # first byte of the first group; what is behind the groups is 255.255.255.255 and class E, used by none
_GROUPS6: Final = b"\xff"


def open_wall_socket() -> socket.socket:
    """For Wall; whoever holds it, or a copy, keeps the table in place.  Raises OSError: the kernel has no nf_tables."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)


class Wall:
    """The table for one interface.  It needs CAP_NET_ADMIN at each change, not to stay."""

    def __init__(self, sock: socket.socket, interface: str) -> None:
        sock.settimeout(ANSWER_TIMEOUT)
        self._socket = sock
        self._batch = 0  # its number: a late answer to an earlier one says nothing
        self._name = f"ptunnel-{interface}"
        self._index = socket.if_nametoindex(interface)

    def build(self, config: InterfaceConfig) -> None:
        """In place of what was there before, in one step.  Raises ConfigurationError where the kernel refuses."""
        named = _attribute(1, _text(self._name))
        messages = [_message(_NEWTABLE, _NLM_F_CREATE, named + _attribute(2, _number(_OWNER)))]
        for chain, hook, priority, rules in (
            ("entry", _PREROUTING, _FIRST, self._entry(config)),
            ("passage", _FORWARD, _FILTER, self._passage(config)),
        ):
            place = _nested(4, _attribute(1, _number(hook)) + _attribute(2, _number(priority)))
            chained = named + _attribute(3, _text(chain)) + place + _attribute(7, _text("filter"))
            messages.append(_message(_NEWCHAIN, _NLM_F_CREATE, chained))
            in_chain = named + _attribute(2, _text(chain))
            messages.append(_message(_DELRULE, 0, in_chain))
            for rule in rules:
                messages.append(_message(_NEWRULE, _NLM_F_CREATE | _NLM_F_APPEND, in_chain + _nested(4, b"".join(rule))))
        try:
            self._send(messages)
        except OSError as error:
            raise ConfigurationError(f"The kernel takes no rules for {self._name}: {os.strerror(error.errno or 0)}.") from error

    def _entry(self, config: InterfaceConfig) -> list[list[bytes]]:
        """IPv6 sources are left to the routing table, which has no use for those of others here: nothing of them is forwarded."""
        rules = [[*_meta(_IIF, _NEQ, struct.pack("=I", self._index)), _verdict(_ACCEPT)]]
        rules += [[*match, *_is_from_room(config), _verdict(_ACCEPT)] for match in _ours(config) if match[:2] == _family(_IPV4)]
        rules += [[*match, _verdict(_ACCEPT)] for match in _ours(config) if match[:2] == _family(_IPV6)]
        # A neighbour of the ethernet speaks to a group whose route leads into the room: see tunnel.doors.tun.ethernet.
        for group in config.routed_groups:
            rules.append([*_family(_IPV4), *_field(16, _EQ, group), _verdict(_ACCEPT)])
        return [*rules, [_verdict(_DROP)]]

    def _passage(self, config: InterfaceConfig) -> list[list[bytes]]:
        rules = [[*_meta(_IIF, _NEQ, struct.pack("=I", self._index)), _verdict(_ACCEPT)]]
        return [*rules, *([*match, _verdict(_DROP)] for match in _ours(config))]

    def _send(self, messages: list[bytes]) -> None:
        """As one transaction.  Raises OSError with the first refusal."""
        self._batch += 1
        whole = (_batch_mark(_BATCH_BEGIN), *messages, _batch_mark(_BATCH_END))
        numbered = [message[:8] + struct.pack("=I", self._batch) + message[12:] for message in whole]
        self._socket.send(b"".join(numbered))
        waiting = len(messages)
        while waiting > 0:
            answer = self._socket.recv(_BUFFER)
            at = 0
            while at + _HEADER.size + _ERROR.size <= len(answer):
                length, _, _, batch, _ = _HEADER.unpack_from(answer, at)
                code = _ERROR.unpack_from(answer, at + _HEADER.size)[0]
                if batch == self._batch:
                    if code:
                        raise OSError(-code, "nf_tables")
                    waiting -= 1
                at += max(_HEADER.size, (length + 3) & ~3)


def _ours(config: InterfaceConfig) -> list[list[bytes]]:
    """A match for each destination that a packet of the room may have: our addresses, and everybody's."""
    found = []
    if config.ipv4 is not None:
        network = ipaddress.IPv4Network(config.ipv4, strict=False)
        for address in (ipaddress.IPv4Address(config.ipv4[0]), network.broadcast_address):
            found.append([*_family(_IPV4), *_field(16, _EQ, address.packed)])
    found.append([*_family(_IPV4), *_field(16, _GTE, _GROUPS4)])
    for text, _ in config.ipv6:
        found.append([*_family(_IPV6), *_field(24, _EQ, ipaddress.IPv6Address(text).packed)])
    found.append([*_family(_IPV6), *_field(24, _EQ, _GROUPS6)])
    return found


def _is_from_room(config: InterfaceConfig) -> list[bytes]:
    if config.ipv4 is None:
        return []
    network = ipaddress.IPv4Network(config.ipv4, strict=False)
    return [*_field(12, _GTE, network.network_address.packed), *_field(12, _LTE, network.broadcast_address.packed)]


# ------------------------------------------------------------ netlink


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, value)


def _number(value: int) -> bytes:
    return struct.pack("!I", value & 0xFFFF_FFFF)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _message(kind: int, flags: int, attributes: bytes) -> bytes:
    body = struct.pack("!BBH", _INET, 0, 0) + attributes
    return _HEADER.pack(16 + len(body), _SUBSYSTEM << 8 | kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 0, 0) + body


def _batch_mark(kind: int) -> bytes:
    return _HEADER.pack(20, kind, _NLM_F_REQUEST, 0, 0) + struct.pack("!BBH", 0, 0, _SUBSYSTEM)


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _attribute(1, _text(name)) + _nested(2, b"".join(attributes)))


def _compare(operator: int, value: bytes) -> bytes:
    register = _attribute(1, _number(_REGISTER))
    return _expression("cmp", register, _attribute(2, _number(operator)), _nested(3, _attribute(1, value)))


def _meta(key: int, operator: int, value: bytes) -> list[bytes]:
    loaded = _expression("meta", _attribute(1, _number(_REGISTER)), _attribute(2, _number(key)))
    return [loaded, _compare(operator, value)]


def _family(number: int) -> list[bytes]:
    return _meta(_NFPROTO, _EQ, bytes((number,)))


def _field(offset: int, operator: int, value: bytes) -> list[bytes]:
    """Bytes of the IP header from `offset` on, as many as the value has."""
    places = (1, _REGISTER), (2, 1), (3, offset), (4, len(value))  # 1: NFT_PAYLOAD_NETWORK_HEADER
    return [_expression("payload", *(_attribute(kind, _number(number)) for kind, number in places)), _compare(operator, value)]


def _verdict(code: int) -> bytes:
    return _expression("immediate", _attribute(1, _number(0)), _nested(2, _nested(2, _attribute(1, _number(code)))))
