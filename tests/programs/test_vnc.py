"""VNC (RFC 6143): the whole picture, several times, and a pointer that moves at home."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import environment
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = [pytest.mark.nightly, needs("Xtigervnc", "xdotool")]

WIDTH, HEIGHT = 1280, 960
PICTURES = 10
SET_ENCODINGS, UPDATE_REQUEST, POINTER_EVENT = 2, 3, 5
RAW = 0


class Viewer:
    """As much of a client as asks for pictures without compression."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        assert self._read(12) == b"RFB 003.008\n"
        sock.sendall(b"RFB 003.008\n")
        assert b"\x01" in self._read(self._read(1)[0])  # no password among what is offered
        sock.sendall(b"\x01")
        assert self._read(4) == bytes(4)
        sock.sendall(b"\x01")  # others may stay
        self.width, self.height, bits, *_, length = struct.unpack(">HHB15sI", self._read(24))
        self.bytes_per_pixel = bits // 8
        self.name = self._read(length)
        sock.sendall(struct.pack(">BxHi", SET_ENCODINGS, 1, RAW))

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._sock.recv(count - len(parts))
            assert part, "the connection has ended"
            parts += part
        return bytes(parts)

    def picture(self) -> bytes:
        """The whole screen, anew."""
        self._sock.sendall(struct.pack(">BBHHHH", UPDATE_REQUEST, 0, 0, 0, self.width, self.height))
        assert self._read(1) == b"\x00"
        _, rectangles = struct.unpack(">BH", self._read(3))
        pixels = bytearray()
        for _ in range(rectangles):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            assert encoding == RAW
            pixels += self._read(width * height * self.bytes_per_pixel)
        return bytes(pixels)

    def point(self, x: int, y: int) -> None:
        self._sock.sendall(struct.pack(">BBHH", POINTER_EVENT, 0, x, y))


def test_pictures_come_and_the_pointer_goes(homes: Homes) -> None:
    words = ["Xtigervnc", ":9", "-rfbport", "5909", "-localhost", "-SecurityTypes", "None", "-depth", "24"]
    homes.serve("vnc", [*words, "-geometry", f"{WIDTH}x{HEIGHT}", "-desktop", "at home"], 5909)
    homes.link("5909", forward=["15909:5909"])
    sock = homes.friend.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(SLOW_S)
    sock.connect(("127.0.0.1", 15909))
    with sock:
        viewer = Viewer(sock)
        assert (viewer.width, viewer.height, viewer.name) == (WIDTH, HEIGHT, b"at home")
        first = viewer.picture()
        assert len(first) == WIDTH * HEIGHT * viewer.bytes_per_pixel
        homes.rebind()
        for _ in range(PICTURES):
            assert viewer.picture() == first
        viewer.point(123, 456)
        env = environment(homes.folder / "looking", DISPLAY=":9")
        eventually(
            "the pointer has moved",
            lambda: homes.home.run("xdotool", "getmouselocation", env=env).stdout.startswith("x:123 y:456 "),
            SLOW_S,
        )
