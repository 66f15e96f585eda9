"""The servers of a fleet as its store has them, for whoever has the key."""

from __future__ import annotations

from typing import Any

from tunnel.fleet.door import Door
from tunnel.host.clock import unix_time
from tunnel.rendezvous.fleet.directory import Look
from tunnel.rendezvous.fleet.fleet import describe
from tunnel.rendezvous.fleet.members import SERVERS
from tunnel.rendezvous.fleet.records import ServerRecord, decode
from tunnel.rendezvous.fleet.seal import Seal


async def servers(fleet: Door) -> list[dict[str, Any]]:
    """By index.  `age_s`: seconds since a server wrote, by both calendars.  Raises ServerUnreachableError."""
    entries = await fleet.store.ask(Look(SERVERS))
    seal = Seal(fleet.key)
    found = [decode(ServerRecord, seal.open(SERVERS + field, value)) for field, value in entries.items()]
    records = sorted((each for each in found if each is not None), key=lambda each: each.index)
    return [{**describe(each), "age_s": max(0, unix_time() - each.written_at)} for each in records]
