"""Datagrams at a fixed rate, and who counts them: `send HOST PORT A_SECOND SECONDS SIZE`, `receive PORT`.

Each prints one JSON line at its end.  The receiver's socket is large, so that what is missing was lost before it; it ends when
a datagram of one byte comes, or after five seconds of silence.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time

STEP = 0.001  # seconds between two bursts of the sender
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; without CAP_NET_ADMIN the usual limit stands


def send(host: str, port: int, a_second: float, seconds: float, size: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, port))
    data = bytes(size)
    sock.send(data)  # so that the flow is open when the others come
    time.sleep(0.5)
    sent = refused = 0
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        for _ in range(int(elapsed * a_second) - sent - refused):
            try:
                sock.send(data)
            except OSError:
                refused += 1
            else:
                sent += 1
        time.sleep(max(0.0, STEP - (time.monotonic() - began - elapsed)))
    time.sleep(0.5)
    for _ in range(3):
        with contextlib.suppress(OSError):
            sock.send(b"e")
        time.sleep(0.05)
    print(json.dumps({"sent": sent + 1, "refused": refused, "seconds": elapsed}), flush=True)


def receive(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("127.0.0.1", port))
    sock.settimeout(30)
    buffer = bytearray(65_536)
    print("ready", flush=True)
    received = 0
    longest = last = 0.0
    receive_into, clock = sock.recv_into, time.monotonic
    with contextlib.suppress(TimeoutError):
        while receive_into(buffer) > 1:
            now = clock()
            if not received:
                sock.settimeout(5)
            elif received > 1 and now - last > longest:
                longest = now - last
            last = now
            received += 1
    print(json.dumps({"received": received, "longest_silence_ms": round(1e3 * longest, 1)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))
    else:
        receive(int(sys.argv[2]))
