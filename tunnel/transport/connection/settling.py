"""What an ACK of the peer settles: bursts that arrived, those that are lost by it, and what follows for the paths."""

from __future__ import annotations

from tunnel.errors import PeerError
from tunnel.transport.connection import tracing
from tunnel.transport.connection.shared import Shared
from tunnel.transport.recovery.acks import MAX_ACK_DELAY
from tunnel.units import Instant, Seconds


def settle(shared: Shared, now: Instant, ranges: list[tuple[int, int]], delay: float) -> None:
    """Settle what the peer has, path by path.  Raises PeerError on an ACK of what was never sent (RFC 9000 §13.1, §21.4)."""
    if not shared.was_sent(ranges):
        raise PeerError("the peer acknowledged a packet that was never sent")
    ack_delay = Seconds(min(delay, MAX_ACK_DELAY))
    for path in shared.paths.known.values():
        recovery = path.recovery
        if path.pmtu.awaits(ranges):
            path.set_mtu(path.pmtu.on_probe_acked(now), now)
            shared.mtu_changed |= path is shared.paths.current
        if not recovery.bytes_in_flight and not len(recovery.ring):
            continue
        result = recovery.on_ack(ranges, ack_delay, now)
        for burst, mask in result.acked:
            shared.content_acked(burst.content, mask, burst.count)
            if path.in_doubt_since is not None and burst.sent_at >= path.in_doubt_since:
                path.trust()
        for burst, mask in result.spurious:
            shared.content_acked(burst.content, mask, burst.count)
        for burst, mask in result.lost:
            shared.content_lost(burst.content, mask, burst.count)
        if (result.lost or path.large_losses) and path.weigh(result.acked, result.lost, now):
            shared.mtu_changed |= path is shared.paths.current
        if result.acked:
            path.on_acked(now)
            path.pacer.set_rate(recovery.pacing_rate(), now)
        if shared.trace is not None and (result.acked or result.lost):
            tracing.settled(shared.trace, now, path, result.lost)
    pruned = shared.unacknowledged_acks
    while pruned and pruned[0][0] <= ranges[0][1]:
        number, largest = pruned.popleft()
        if any(low <= number <= high for low, high in ranges):
            shared.acks.prune(largest - 2048)
