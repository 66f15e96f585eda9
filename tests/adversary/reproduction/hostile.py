"""A peer made from docs/protocol.md (chapter 4): it holds the keys of one side and seals whatever frames a test thinks of."""

from __future__ import annotations

import random
from struct import Struct
from typing import Any, Final

from tests.adversary.reproduction import tree
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import PathKind
from tunnel.transport.crypto.keys import AES_256_GCM, Keypair
from tunnel.transport.crypto.params import Params
from tunnel.units import Address, Instant, PathKey, SocketId

HEADER: Final = Struct(">BIQ")  # 0x80, receiver index, sequence number
PATH: Final = PathKey(SocketId(0), Address("192.88.99.1", 1_000), b"")


class Hostile:
    """The initiator's keys in the wrong hands; the victim is the responder."""

    def __init__(self) -> None:
        rng = random.Random(1)
        ours, theirs = rng.randbytes(32), rng.randbytes(32)
        self.sent = 0  # datagrams of the victim
        self._keys = Keypair(
            aead=AES_256_GCM, send_key=ours, receive_key=theirs, local_index=1, remote_index=2, is_initiator=True
        )
        self.victims_keys = Keypair(
            aead=AES_256_GCM, send_key=theirs, receive_key=ours, local_index=2, remote_index=1, is_initiator=False
        )
        params = [Params(instance=n, name=f"peer{n}", aeads=(1, 2), receive_buffer=1 << 20) for n in (1, 2)]
        self.now = Instant(1_000.0)
        self._number = 0
        self._out = bytearray(65_536)
        older: dict[str, Any] = {} if tree.IS_OURS else {"remote_static": bytes(32)}
        self.victim = Connection(
            is_initiator=False,
            keypair=self.victims_keys,
            local=params[1],
            remote=params[0],
            **older,
            path=PATH,
            path_kind=PathKind.DIRECT,
            now=self.now,
            rng=rng,
        )

    def seal(self, frames: bytes) -> bytes:
        head = HEADER.pack(0x80, self._keys.remote_index, self._number)
        nonce = bytes(4) + self._number.to_bytes(8, "big")
        self._number += 1
        return head + self._keys.send.encrypt(nonce, frames, head)

    def deliver(self, datagram: bytes) -> None:
        """The victim takes it, sends what it has to say and tells its events, as the driver has it do."""
        self.victim.handle_datagrams(self.now, PATH, memoryview(datagram), 0, len(datagram))
        self.settle()

    def settle(self) -> None:
        while (burst := self.victim.poll_transmit(self.now, self._out)) is not None:
            self.sent += -(-len(burst.buffer) // burst.segment_size)
        while self.victim.poll_event() is not None:
            pass

    def send(self, frames: bytes) -> None:
        self.deliver(self.seal(frames))
