"""What a paired peer, or anybody who sends to our port, cannot do."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.adversary.reproduction import tree
from tests.adversary.reproduction.people import FIRST, Cast
from tests.unit.connection.pair import A, keypairs
from tests.work import instructions
from tunnel.transport.connection.carried import MaxData, MaxStreamData
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import PathKind
from tunnel.transport.crypto.keys import REJECT_AFTER_PACKETS
from tunnel.transport.crypto.params import Params
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import HEADER, NONCE_PREFIX, TRANSPORT
from tunnel.units import Address, Instant, PathKey, StreamId

CONTROL_PONG = 3  # docs/protocol.md
BURST = 64  # packets that are sealed at once
STRANGER = Address("45.1.0.99", 4_444)


def work_for_junk(count: int, junk: bytes) -> int:
    """Instructions that a stranger's datagram costs an endpoint with so many connected peers."""
    names = [f"friend{number}" for number in range(count)]
    with Cast(*names) as cast:
        home = cast.home
        for name in names:
            cast.people[name].connect(home)
        cast.world.run(10.0)  # until nothing is under way
        now = cast.world.now

        out = bytearray(65_536)

        def deliver() -> None:
            """As a driver does: where something follows from it, what there is to send, and when to look again."""
            if home.endpoint.handle_batch(now, FIRST, STRANGER, memoryview(junk), len(junk)):
                while home.endpoint.poll_transmit(now, out) is not None or home.endpoint.poll_event(now) is not None:
                    pass
                home.endpoint.poll_timeout()

        deliver()  # what is made once
        return instructions(deliver)


JUNK = {"a datagram under no key": b"\x80\xff\xff", "an init": b"\x70\x02\0\0", "a response to no request": b"\x41\x01"}


@pytest.mark.parametrize("kind", JUNK)
def test_what_a_stranger_sends_costs_the_same_with_one_peer_and_with_sixteen(kind: str) -> None:
    junk = JUNK[kind] + random.Random(1).randbytes(320)
    many, one = work_for_junk(16, junk), work_for_junk(1, junk)
    assert many < 2 * one, f"{many:,} instructions with sixteen, {one:,} with one"


def test_a_peer_cannot_answer_a_ping_before_it_has_heard_it() -> None:
    with Cast("friend") as cast:
        friend = cast.people["friend"]
        connection = friend.connect(cast.home)
        (home,) = cast.home.endpoint.peerings
        cast.world.run_until(lambda: home.is_confirmed)
        for guess in range(64):
            connection.send_control(bytes((CONTROL_PONG,)) + guess.to_bytes(8, "big"))
        cast.world.touch(friend.host)
        cast.world.run(1.0)
        asked = cast.world.now
        token = home.send_ping()
        cast.world.touch(cast.home.host)
        cast.world.run_until(lambda: token in home.pings.answers, 5.0)
        took = home.pings.answers[token] - asked
        assert took > 0, f"a round trip of {took:.2f} s"


class Absent:
    """A peer that has left its address, holds its keys, and acknowledges all that is sent there, as if it got it."""

    PATH = PathKey(FIRST, A, b"")

    def __init__(self) -> None:
        self.keys, self.key = keypairs(random.Random(1))
        self.now = Instant(1_000.0)
        params = [Params(instance=n, name=f"peer{n}", aeads=(1, 2), receive_buffer=1 << 20) for n in (1, 2)]
        older: dict[str, Any] = {} if tree.IS_OURS else {"remote_static": bytes(32)}
        self.victim = Connection(
            is_initiator=False,
            keypair=self.key,
            local=params[1],
            remote=params[0],
            **older,
            path=self.PATH,
            path_kind=PathKind.DIRECT,
            now=self.now,
            rng=random.Random(1),
        )
        self.sent = 0  # bytes to that address
        self._highest = 0
        self._number = 0
        self._out = bytearray(65_536)

    def say(self, body: bytes) -> None:
        head = HEADER.pack(TRANSPORT, self.keys.remote_index, self._number)
        datagram = head + self.keys.send.encrypt(NONCE_PREFIX + self._number.to_bytes(8, "big"), body, head)
        self._number += 1
        self.victim.handle_datagrams(self.now, self.PATH, memoryview(datagram), 0, len(datagram))
        self._collect()

    def _collect(self) -> None:
        while (transmit := self.victim.poll_transmit(self.now, self._out)) is not None:
            self.sent += len(transmit.buffer)
            for at in range(0, len(transmit.buffer), transmit.segment_size):
                self._highest = max(self._highest, HEADER.unpack_from(transmit.buffer, at)[2])
        while self.victim.poll_event() is not None:
            pass

    def acknowledge(self) -> None:
        """Everything from the first number on, docs/protocol.md."""
        self.say(frames._ACK_HEAD.pack(Frame.ACK, 0, 0, self._highest, self._highest))

    def pass_time(self, seconds: float) -> None:
        until = Instant(self.now + seconds)
        while (at := self.victim.poll_timeout()) is not None and at <= until:
            self.now = max(self.now, at)
            self.victim.handle_timeout(self.now)
            self._collect()
        self.now = until

    def be_sent(self, stream_id: StreamId, seconds: float) -> int:
        """How many bytes that makes us send, in so long."""
        before, until = self.sent, self.now + seconds
        while self.now < until:
            if not self.victim.is_closed:
                self.victim.stream_write(stream_id, bytes(20_000))
            self._collect()
            self.acknowledge()
            self.pass_time(0.05)
        return self.sent - before


def test_a_peer_that_has_left_and_acknowledges_all_the_same_is_sent_nothing_more_after_two_minutes() -> None:
    peer = Absent()
    stream_id = peer.victim.open_stream()
    peer.say(MaxData.pack(2**60))
    peer.say(MaxStreamData.pack(stream_id, 2**60))
    peer.be_sent(stream_id, 120.0)
    more = peer.be_sent(stream_id, 30.0)
    assert more < 20_000, f"{more:,} bytes went there in half a minute more"


def test_under_keys_that_are_not_replaced_no_more_is_sealed_than_their_cipher_allows() -> None:
    peer = Absent()
    stream_id = peer.victim.open_stream()
    peer.say(MaxData.pack(2**60))
    peer.say(MaxStreamData.pack(stream_id, 2**60))
    peer.key.sent_packets = REJECT_AFTER_PACKETS - 3
    peer.be_sent(stream_id, 30.0)
    beyond = peer.key.sent_packets - REJECT_AFTER_PACKETS
    assert beyond < BURST, f"{beyond:,} packets more"
