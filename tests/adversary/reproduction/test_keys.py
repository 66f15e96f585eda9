"""How long keys are used, also where somebody on the path, or the relay, drops handshakes and lets the data through."""

from __future__ import annotations

from tests.adversary.reproduction.hostile import Hostile
from tests.adversary.reproduction.people import Cast
from tests.sim.world import Host
from tunnel.units import Address

HANDSHAKES = range(0x70, 0x75)  # their first bytes
REJECT_AFTER = 180  # seconds for which a keypair is good
MOST_PACKETS = 2**27  # that it may seal


def is_handshake(datagram: bytes) -> bool:
    return datagram[0] in HANDSHAKES or (datagram[0] >= 0xC0 and datagram[8] in HANDSHAKES)


def test_who_drops_handshakes_alone_cannot_keep_old_keys_in_use_and_both_people_are_told() -> None:
    with Cast("friend") as cast:
        friend = cast.people["friend"]
        connection = friend.connect(cast.home)
        cast.world.run(5.0)
        before = [len(person.problems) for person in (cast.home, friend)]

        def drop(sender: Host, destination: Address, datagram: bytes) -> bool:
            return not is_handshake(datagram)

        cast.world.filter = drop
        stream = connection.open_stream()
        late = 0
        for second in range(0, 600, 10):
            taken = cast.home.bytes_taken
            if not connection.is_closed:
                connection.stream_write(stream, bytes(100))
                cast.world.touch(friend.host)
            cast.world.run(10.0)
            late += cast.home.bytes_taken - taken if second > REJECT_AFTER else 0
        assert late == 0, f"{late} bytes arrived under keys older than {REJECT_AFTER} s"
        assert all(len(person.problems) > count for person, count in zip((cast.home, friend), before, strict=True))


def test_keys_that_have_sealed_all_they_may_seal_nothing_more() -> None:
    peer = Hostile()
    peer.send(b"\x01")
    stream = peer.victim.open_stream()
    peer.victim.stream_write(stream, bytes(100))
    peer.settle()
    assert peer.sent > 0
    peer.victims_keys.sent_packets = MOST_PACKETS
    peer.sent = 0
    peer.victim.stream_write(stream, bytes(10_000))
    peer.settle()
    assert peer.sent == 0, f"{peer.sent} packets were sealed beyond {MOST_PACKETS}"
