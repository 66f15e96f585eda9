"""The library: what the command line itself uses.

async with tunnel.connect("731-garden-violin", server="rv.example.net") as link:
    stream = await link.open_stream(...)

async with tunnel.expose(["22"], server="rv.example.net", on_event=print) as exposure:
    await exposure.run()

async with tunnel.lan.create("game", server="rv.example.net", on_event=print) as room:
    await room.run()
"""

from __future__ import annotations

from tunnel.api.connecting import connect
from tunnel.api.exposing import Exposure, expose
from tunnel.api.granting import revoke

__all__ = ["connect", "expose", "revoke", "Exposure"]
