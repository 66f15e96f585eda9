"""The part of `status` of a home that runs, beside its links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunnel.ports.granting import told
from tunnel.up.grants import reach

if TYPE_CHECKING:
    from tunnel.shell.endpoint import KnownPeer
    from tunnel.up.doors import Door
    from tunnel.up.home import Home


def details(home: Home) -> dict[str, Any]:
    """As docs/json.md has it."""
    from tunnel.ports.counters import drops_by_place

    forwards = [
        {"bind": each["bind"], "target": each["target"], "peer": each["peer"], "spec": door.wish.text, **_rate(door)}
        for door in home.doors
        for each in door.told()
    ]
    remotes = [
        {**each, "spec": door.wish.text, "listening": remote in door.there, **_rate(door)}
        for door in home.doors
        for remote, each in zip(door.remotes, door.told_remotes(), strict=True)
    ]
    counters = home.counters.as_dict()
    found: dict[str, Any] = {"forwards": forwards, "remotes": remotes, "peers": [_peer(home, each) for each in home.peers]}
    found["counters"], found["rooms"] = counters, home.rooms.status()
    if home.is_ready:
        found["server"] = home.exposure.server or ""
        found["servers"] = home.driver.core.servers.describe(home.driver.clock())
        found["drops"] = drops_by_place(home.driver.counters(), counters, home.links)
        if home.page_refused:
            found["drops"]["page"] = {**home.page_refused}
    return found


def _rate(door: Door) -> dict[str, float]:
    return {} if door.limit is None else {"rate": door.limit.rate}


def _peer(home: Home, peer: KnownPeer) -> dict[str, Any]:
    bond = home.bond_of(peer)
    is_here = any(link.is_connected for link in home.links if link.peer.static == peer.static)
    wanted = bond is not None and bool(bond.doors)
    state = "connected" if is_here else "awaited" if wanted else "absent"
    why = bond.trouble if bond is not None else ""
    return {"peer": peer.name, "state": state, "why": why, "grants": [*told(reach(peer))]}
