"""What peers cost that are dialed and are away: nothing that grows.  All in virtual time."""

from __future__ import annotations

from hashlib import sha256

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import GRANTS, SERVER
from tests.sim.world import Host
from tunnel.node.events import KnownPeer
from tunnel.units import Seconds, Transmit

AWAY = 20  # peers
HOUR = Seconds(3600.0)


def test_twenty_peers_that_are_away_cost_nothing_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as cast:
        sent = [0]
        send = cast.world._send

        def count(host: Host, burst: Transmit) -> None:
            sent[0] += -(-len(burst.buffer) // burst.segment_size) if host.name == "home" else 0
            send(host, burst)

        monkeypatch.setattr(cast.world, "_send", count)
        home = cast.home
        for number in range(AWAY):
            static = sha256(b"%d" % number).digest()
            home.save(KnownPeer(name=f"away{number}", static=static, psk=sha256(static).digest(), server=SERVER, grants=GRANTS))
        home.endpoint.set_peers(cast.world.now, home.saved.values())
        home.meet(cast.server)
        home.listen()

        def hour() -> tuple[int, int, int]:
            """Datagrams of home, what it told, and the connections that it asks for."""
            before, told = sent[0], len(home.told)
            cast.world.run(HOUR)
            return sent[0] - before, len(home.told) - told, len(home.endpoint.peerings)

        alone = hour()[0]
        for peer in home.saved.values():
            home.endpoint.dial(cast.world.now, peer, SERVER)
        cast.world.touch(home.host)
        cast.world.run(60.0)
        for datagrams, told, asked in [hour() for _ in range(3)]:
            assert datagrams < 1.2 * alone  # the server tells when one of them comes, so none of them is asked for
            assert (told, asked) == (0, AWAY)
