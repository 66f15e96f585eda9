"""What links hold while nothing is carried: one buffer for all of them to open into, and nothing of what was sent."""

from __future__ import annotations

from tests.sim.cast import Cast, acquaint
from tunnel.node.peering import Peering

PEERS = 4


def rings(peering: Peering) -> int:
    """Bytes held for what is to be sent on this side's streams."""
    assert peering.connection is not None
    return sum(len(stream._ring) for stream in peering.connection._shared.streams.sending.values())


def test_all_links_open_what_comes_into_one_buffer_and_each_gets_its_own() -> None:
    with Cast() as cast:
        peers = [cast.another(f"peer{number}") for number in range(PEERS)]
        acquaint(cast.home, *peers)
        cast.home.meet(cast.server)
        cast.home.listen()
        for peer in peers:
            peer.meet(cast.server)
            peer.dial(cast.home)
        cast.world.run_until(lambda: len(cast.home.live) == PEERS, 30)
        buffers = {id(each.connection._receiver._plain) for each in cast.home.live if each.connection is not None}
        assert len(buffers) == 1
        transfers = [peer.send(peer.live[0], cast.bytes_of(200_000)) for peer in peers]  # all at once, each with bytes of its own
        cast.world.run_until(lambda: all(each.is_done for each in transfers), 60)


def test_a_link_at_rest_gives_back_the_room_for_what_it_sent_and_carries_on() -> None:
    with Cast() as cast:
        peering = cast.meet_directly()
        cast.transfer(peering, 300_000)
        [theirs] = cast.home.live
        waiting = cast.friend.send(peering, b"hello")  # on a stream that stays open
        cast.world.run_until(lambda: waiting.is_done, 5)
        assert rings(peering) > 0
        assert rings(theirs) > 0
        cast.world.run(60.0)
        assert (rings(peering), rings(theirs)) == (0, 0)
        waiting.data += cast.bytes_of(50_000)
        cast.friend._write(peering, waiting.stream_id)
        cast.world.touch(cast.friend.host)
        cast.world.run_until(lambda: waiting.is_done, 5)
        cast.transfer(peering, 300_000)
        assert not cast.home.closed + cast.friend.closed
