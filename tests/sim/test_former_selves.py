"""A home that is killed and started again, as often as one likes: its former selves are in nobody's way.  In virtual time."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast, acquaint
from tests.sim.peers import PeerNode
from tunnel.node.turns import AT_ONCE, TURN
from tunnel.rendezvous.limits import ServerConfig

KINDS = ("prc", "fw", "sym", "prcrace", "prc", "sym")  # of the peers' sites
PEERS = len(KINDS)
KILLS = 8
DOWN = 0.5  # seconds until a supervisor has started it again
SOON = 3.0  # seconds until all that stood before a kill stands again


def start(cast: Cast, home: PeerNode, peers: list[PeerNode]) -> None:
    """A process of home: it waits for its peers and calls all of them, as `ptunnel up` does."""
    home.meet(cast.server)
    home.listen()
    for peer in peers:
        home.dial(peer)


def restart(cast: Cast, home: PeerNode, peers: list[PeerNode]) -> None:
    home.kill()
    cast.world.run(DOWN)
    home.boot()
    start(cast, home, peers)


def test_all_peers_are_met_again_however_often_a_home_is_killed() -> None:
    """With a server that gives an address too few channels for those of the dead."""
    with Cast(config=ServerConfig(channels_per_address=2 * PEERS)) as cast:
        home = cast.home
        home.parts = True
        peers = [cast.another(f"peer{number}", kind) for number, kind in enumerate(KINDS)]
        acquaint(home, *peers)
        for peer in peers:
            peer.meet(cast.server)
            peer.listen()
        start(cast, home, peers)
        cast.world.run_until(lambda: len(home.live) == PEERS, 30)
        for _ in range(KILLS):
            cast.world.run(4.0)
            restart(cast, home, peers)
            cast.world.run_until(lambda: len(home.live) == PEERS, SOON)
            for peering in home.live:
                cast.transfer(peering, 1_000, SOON)
            assert home.problems == []
        counters = cast.server.server.counters()
        assert counters["sessions"] == 1 + PEERS
        assert counters["channels"] == PEERS


@pytest.mark.parametrize("kind", ["prc", "sym"])
def test_a_peer_that_called_a_home_which_was_killed_meets_the_new_one_at_once(kind: str) -> None:
    """Also where no word of theirs goes by the server: it hears there that the one it speaks with is gone, and looks."""
    with Cast(home=kind, friend=kind) as cast:
        cast.home.parts = True
        peering = cast.meet() if kind == "sym" else cast.meet_directly()
        cast.world.run(30.0)
        restart(cast, cast.home, [])
        cast.world.run_until(lambda: bool(cast.friend.restarts), SOON)
        cast.transfer(peering, 1_000, SOON)


def test_the_link_to_a_home_that_was_killed_costs_its_peer_little() -> None:
    """Nobody is there to hear where a pool of sockets is open, so none is opened."""
    with Cast() as cast:
        home, friend = cast.people
        home.parts = True
        acquaint(home, friend)
        friend.meet(cast.server)
        friend.listen()
        start(cast, home, [friend])
        cast.world.run_until(cast.is_direct, 30)
        cast.world.run(30.0)
        [old] = friend.live
        spent = old.punching(cast.world.now)["checks_sent"]
        restart(cast, home, [friend])
        sockets = 0
        for _ in range(60):
            cast.world.run(0.25)
            sockets = max(sockets, len(friend.host.sockets))
        assert not old.is_reachable
        assert sockets == 1
        assert old.punching(cast.world.now)["checks_sent"] - spent < 100
        assert cast.is_direct() or any(each is not old and each.is_reachable for each in friend.live)


def test_a_home_that_meets_many_peers_reaches_them_all_before_it_looks_for_better_paths() -> None:
    """By the server, at once; then its searches begin one after the other, and each leads to a direct path."""
    with Cast() as cast:
        home = cast.home
        home.parts = True
        peers = [cast.another(f"peer{number}") for number in range(20)]
        acquaint(home, *peers)
        for peer in peers:
            peer.meet(cast.server)
            peer.listen()
        start(cast, home, peers)
        cast.world.run_until(lambda: len(home.live) == len(peers), 1.0)
        for peering in home.live:
            cast.transfer(peering, 100, SOON)
        cast.world.run_until(lambda: home.is_direct, AT_ONCE + 20 * TURN + SOON)
