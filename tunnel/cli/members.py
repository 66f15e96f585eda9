"""Sentences about a room's members: their table, and why there is no link to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def why_no_link(name: str, room: str, *, is_me: bool, is_online: bool) -> str:
    """Of a member of a running room."""
    if is_me:
        return f"{name} is this machine, in the room '{room}': name another member."
    if is_online:
        return f"{name} is a member of the room '{room}', and is just being connected."
    return f"{name} is a member of the room '{room}', and away: it has no connection just now."


def table(members: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each member: who, address, path, round trip, loss, rates; and why where it is relayed."""
    from tunnel.cli.render import columns, rate, round_trip

    rows = [("MEMBER", "ADDRESS", "PATH", "RTT", "LOSS", "UP", "DOWN", "")]
    for member in members:
        name = f"{member['peer']} *" if member["creator"] else member["peer"]
        if member["self"]:
            rows.append((name, member["address"], "this machine", "", "", "", "", ""))
        elif not member.get("kind"):
            rows.append((name, member["address"], "connecting" if member["online"] else "away", "", "", "", "", ""))
        else:
            sent = member.get("packets_sent", 0)
            loss = 100 * member.get("packets_lost", 0) / sent if sent else 0.0
            up, down = rate(member.get("send_rate", 0)), rate(member.get("receive_rate", 0))
            why = str(member.get("why") or "") if member["kind"] == "relay" else ""
            rows.append((name, member["address"], member["kind"], round_trip(member), f"{loss:.1f} %", up, down, why))
    return columns(rows)
