"""Filters of packet sockets, written with labels.  Source: linux/filter.h, Documentation/networking/filter.rst."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
MAX_EARLY: Final = 10_000  # packets thrown away that came before the filter; a receive buffer holds fewer

INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
LD_W, LD_B, JEQ, JGE, JSET, RET = 0x20, 0x30, 0x15, 0x35, 0x45, 0x06
_AD: Final = 0xFFFF_F000  # SKF_AD_OFF: facts about the packet
LINK_HEADER: Final = 0xFFE0_0000  # SKF_LL_OFF
AD_PROTOCOL, AD_PKTTYPE, AD_IFINDEX, AD_HATYPE = _AD, _AD + 4, _AD + 8, _AD + 28

#: (label, code, operand, where to if true, where to if false); no label: the next line.
Line: TypeAlias = "tuple[str, int, int, str, str]"


def assemble(program: Sequence[Line]) -> bytes:
    """struct sock_filter[]."""
    places = {label: place for place, (label, *_) in enumerate(program) if label}
    encoded = bytearray()
    for place, (_, code, operand, if_true, if_false) in enumerate(program):
        jumps = [places[target] - place - 1 if target else 0 for target in (if_true, if_false)]
        encoded += INSTRUCTION.pack(code, *jumps, operand)
    return bytes(encoded)


def attach(sock: socket.socket, program: bytes) -> None:
    """And throw away what came before.  Raises OSError."""
    import ctypes

    held = ctypes.create_string_buffer(program)
    fprog = struct.pack("@HP", len(program) // INSTRUCTION.size, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    with contextlib.suppress(BlockingIOError):
        for _ in range(MAX_EARLY):
            sock.recv(1)
