"""The yardstick: a bare UDP loop with GSO, GRO and AES-256-GCM, no recovery, no streams, no trio.

`python -m tests.bench.bare receive PORT` prints the bytes it opened in the second in which the most came;
`python -m tests.bench.bare send HOST PORT SECONDS` sends as fast as it can.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEGMENT = 1_472
SEGMENTS = 44
HEADER = 13
KEY = bytes(range(32))
UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def send(host: str, port: int, seconds: float) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    aead, buffer, number = AESGCM(KEY), memoryview(bytearray(SEGMENT * SEGMENTS)), 0
    body = bytes(SEGMENT - HEADER - 16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        at = 0
        for _ in range(SEGMENTS):
            struct.pack_into(">BIQ", buffer, at, 0x80, 1, number)
            buffer[at + HEADER : at + SEGMENT - 16] = body
            aead.encrypt_into(
                b"\0\0\0\0" + number.to_bytes(8, "big"),
                buffer[at + HEADER : at + SEGMENT - 16],
                buffer[at : at + HEADER],
                buffer[at + HEADER : at + SEGMENT],
            )
            number += 1
            at += SEGMENT
        sock.sendmsg([buffer], [(UDP, UDP_SEGMENT, struct.pack("=H", SEGMENT))], 0, (host, port))


def receive(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(UDP, UDP_GRO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(1.5)
    aead, buffer, plain = AESGCM(KEY), memoryview(bytearray(65_536)), memoryview(bytearray(SEGMENT))
    print("ready", flush=True)
    total = 0
    started = last = 0.0
    try:
        while True:
            count, ancillary, _, _ = sock.recvmsg_into([buffer], socket.CMSG_SPACE(4))
            last = time.monotonic()
            started = started or last
            stride = struct.unpack("=i", ancillary[0][2])[0] if ancillary else count
            for at in range(0, count, stride):
                stop = min(at + stride, count)
                number = buffer[at + 5 : at + HEADER]
                size = stop - at - HEADER - 16
                try:
                    aead.decrypt_into(
                        b"\0\0\0\0" + bytes(number), buffer[at + HEADER : stop], buffer[at : at + HEADER], plain[:size]
                    )
                except InvalidTag:
                    continue
                total += size
    except TimeoutError:
        pass
    print(total * 8 / max(last - started, 1e-9) / 1e6, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        receive(int(sys.argv[2]))
