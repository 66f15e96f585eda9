"""The counters of a server, by name: what there is, what was done, what was dropped."""

from __future__ import annotations

from collections import Counter

from tunnel.core.trace import Drops
from tunnel.rendezvous.registry import Registry
from tunnel.rendezvous.relay import Relay


def snapshot(registry: Registry, relay: Relay, done: Counter[str], drops: Drops) -> dict[str, int]:
    """As they are now."""
    return {
        "sessions": len(registry.sessions),
        "rooms": len(registry.rooms),
        "rooms_given_up": registry.given_up,
        "nameplates": len(registry.nameplates),
        "mailboxes": len(registry.mailboxes),
        "channels": len(relay),
        "relayed_bytes": relay.relayed_bytes,
        "relayed_bursts": relay.relayed_bursts,
        **{f"did_{name}": count for name, count in sorted(done.items())},
        **{f"dropped_{name}": count for name, count in sorted((drops + relay.drops).items())},
    }
