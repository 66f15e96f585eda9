"""Pairs that can do the hybrid step, and such that cannot."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.cast import Cast, acquaint
from tests.sim.peers import PeerNode
from tunnel.node.peering import Peering

BOTH = ("home", "friend")


def is_safe(cast: Cast) -> bool:
    """Whatever is sealed now is."""
    live = [peering for person in cast.people for peering in person.live]
    return bool(live) and all(peering.hybrid.is_reached and not peering.hybrid.is_held for peering in live)


def remembered_from_before(cast: Cast) -> None:
    """As pairs of older versions are."""
    acquaint(cast.home, cast.friend, by_older_versions=True)
    for person in cast.people:
        person.meet(cast.server)
    cast.home.listen()


def reboot(cast: Cast, *people: PeerNode) -> None:
    for person in people or cast.people:
        person.kill()
    for person in people or cast.people:
        person.boot()
        person.meet(cast.server)
    cast.home.listen()


def be_old(cast: Cast, *who: str) -> None:
    """From the next start on: a version without the step.  What it knows nothing of it does not keep either."""
    for name in who:
        person = cast.who(name)
        person.is_hybrid = False
        person.saved = {static: replace(peer, kept=(), is_hybrid=False) for static, peer in person.saved.items()}
        person.boot()


def carries(peering: Peering) -> bool:
    return not peering.is_closed and peering.connection is not None and not peering.connection.is_closed
