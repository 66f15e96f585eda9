"""The path's MTU on real kernels: found on links of every common size, direct and relayed, and left when the link shrinks."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import Lab
from tests.netns.programs import Ptunnel

PORT = 7000
FORWARDED = 7001
FOUND = {1280: 1252, 1400: 1372, 1492: 1464, 1500: 1472, 9000: 8972}  # link -> bytes of UDP payload
CHUNK = 64 * 1024


class Line(Lab):
    """Two hosts and a server, each on a link of its own to one router, that sends nothing larger than the MTU and no ICMP."""

    def __init__(self, folder: Path, mtu: int) -> None:
        super().__init__(folder, hops=0)
        self.router = self._namespace("router", router=True)
        self.a, self.b, self.s = (self._namespace(name) for name in "abs")
        for number, space in enumerate((self.a, self.b, self.s), 1):
            space.ip(f"link add dev eth0 mtu 9000 type veth peer name r{number} mtu 9000 netns {self.router.path}")
            space.ip(f"addr add 192.88.99.{8 * number + 2}/29 dev eth0\nlink set eth0 up")
            self.router.ip(f"addr add 192.88.99.{8 * number + 1}/29 dev r{number}\nlink set r{number} up")
            space.ip(f"route add default via 192.88.99.{8 * number + 1}")
        self.router.nft(
            "table ip quiet { chain output { type filter hook output priority 0; icmp type destination-unreachable drop; }; }"
        )
        self._settle()
        self.narrow(mtu)

    def narrow(self, mtu: int) -> None:
        """From now on the router throws away what is larger, without a word."""
        self.router.ip("\n".join(f"link set r{number} mtu {mtu}" for number in (1, 2, 3)))

    def tunnel(self, path: str, port: int) -> tuple[Ptunnel, Ptunnel]:
        """serve, expose in `a`, connect in `b`; these two."""
        server = "192.88.99.26:24531"
        Ptunnel(self, self.s, "serve", "serve", "--listen", server).wait_event("listening")
        expose = Ptunnel(self, self.a, "expose", "expose", str(port), "--server", server, "--path", path, "--name", "home")
        code = expose.wait_event("code")["code"]
        words = ["--server", server, "--path", path, "--forward", f"{FORWARDED}:{port}/tcp"]
        connect = Ptunnel(self, self.b, "connect", "connect", *words, PTUNNEL_CODE=code)
        connect.wait_event("forward")
        return expose, connect


class Source:
    """A TCP server that sends `data` to one client; with `pause`, so many seconds between chunks."""

    def __init__(self, space: Namespace, data: bytes, pause: float = 0.0) -> None:
        self._listener = space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", PORT))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, args=(data, pause), daemon=True)
        self._thread.start()

    def _serve(self, data: bytes, pause: float) -> None:
        with self._listener, self._listener.accept()[0] as peer:
            for at in range(0, len(data), CHUNK):
                peer.sendall(data[at : at + CHUNK])
                time.sleep(pause)


def client(space: Namespace) -> socket.socket:
    sock = space.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", FORWARDED))
    return sock


@pytest.mark.parametrize("path", ["direct", "relay"])
@pytest.mark.parametrize("mtu", FOUND)
def test_the_mtu_of_a_link_is_found_and_used(tmp_path: Path, mtu: int, path: str) -> None:
    data = random.Random(mtu).randbytes(2_000_000)
    with Line(tmp_path, mtu) as line:
        Source(line.a, data)
        for side in line.tunnel(path, PORT):
            side.wait_event("path", 20, kind=path, mtu=FOUND[mtu])
        got = hashlib.sha256()
        with client(line.b) as sock:
            while piece := sock.recv(CHUNK):
                got.update(piece)
        assert got.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("path", ["direct", "relay"])
def test_a_link_that_shrinks_in_mid_transfer_stalls_for_less_than_two_seconds(tmp_path: Path, path: str) -> None:
    data = random.Random(1).randbytes(100 * CHUNK)
    with Line(tmp_path, 1500) as line:
        Source(line.a, data, pause=0.03)
        expose, _connect = line.tunnel(path, PORT)
        expose.wait_event("path", 20, kind=path, mtu=1472)
        got = hashlib.sha256()
        count = 0
        longest, last = 0.0, time.monotonic()
        with client(line.b) as sock:
            while piece := sock.recv(CHUNK):
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                if count < 20 * CHUNK <= count + len(piece):
                    line.narrow(1300)
                count += len(piece)
                got.update(piece)
        assert got.digest() == hashlib.sha256(data).digest()
        assert longest < 2.0
        expose.wait_event("path", 10, after=len(expose.events), kind=path, mtu=1252)
