"""What stands at the TLS door of a server: strangers that never shake hands, and an honest client."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import ssl
import threading
from typing import Final, TypeAlias

from tests.adversary.reproduction.programs import PATIENCE_S
from tests.adversary.reproduction.wire import HELLO, RETRY, read_response, request

Place: TypeAlias = tuple[str, int]

CONNECTIONS: Final = 128
TRIES: Final = 5


def connect(place: Place, source: str) -> socket.socket:
    return socket.create_connection(place, PATIENCE_S, source_address=(source, 0))


def hello() -> bytes:
    """The beginning of a TLS handshake that is never finished."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        unverified().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Strangers:
    """CONNECTIONS of them, from `sources` in turn, that say `words` and no more; one that is closed is made anew."""

    def __init__(self, place: Place, words: bytes, *sources: str) -> None:
        self._place = place
        self._words = words
        self._sources = itertools.cycle(sources)
        self._selector = selectors.DefaultSelector()
        self._is_over = threading.Event()
        for _ in range(CONNECTIONS):
            self._connect()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        connection = connect(self._place, next(self._sources))
        with contextlib.suppress(ConnectionError):  # it may be sent off at once
            connection.sendall(self._words)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hold(self) -> None:
        while not self._is_over.is_set():
            self._is_over.wait(0.02)
            for key, _ in self._selector.select(0.05):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        if connection.recv(65_536):
                            continue
                    self._selector.unregister(connection)
                    connection.close()
                    with contextlib.suppress(OSError):
                        self._connect()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def framed(datagram: bytes) -> bytes:
    return len(datagram).to_bytes(2, "big") + datagram


def says_hello(place: Place, source: str) -> bool:
    """A handshake, a Hello behind its length, and the Retry that answers it."""
    question = request(1, bytes(16), [HELLO])
    try:
        with (
            connect(place, source) as plain,
            unverified().wrap_socket(plain) as connection,
        ):
            connection.sendall(framed(question))
            answer = b""
            while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                part = connection.recv(4_096)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    return bool(read_response(answer[2:])[1][0] == RETRY)


def tries(place: Place, words: bytes, strangers: list[str], honest: str) -> int:
    """How many of TRIES get in beside the strangers."""
    crowd = Strangers(place, words, *strangers)
    try:
        return sum(says_hello(place, honest) for _ in range(TRIES))
    finally:
        crowd.end()
