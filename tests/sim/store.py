"""Remembered peers in memory, by the rules of tunnel.state.peers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tunnel.node.events import KeptPsk, KnownPeer


class PeersInMemory:
    """A PeerStore."""

    def __init__(self, peers: Iterable[KnownPeer] = ()) -> None:
        self.saved = {peer.static: peer for peer in peers}
        self.is_disk_full = False

    def save(self, peer: KnownPeer) -> KnownPeer:
        """A name that is taken gets a number."""
        known = self.saved.get(peer.static)
        taken = {other.name for static, other in self.saved.items() if static != peer.static}
        name, number = known.name if known is not None else peer.name, 2
        while name in taken:
            name, number = f"{peer.name}-{number}", number + 1
        self.saved[peer.static] = replace(peer, name=name)
        return self.saved[peer.static]

    def unsave(self, peer: KnownPeer) -> KnownPeer | None:
        self.saved.pop(peer.static, None)
        return None

    def keep(self, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        peer = self.saved.get(static)
        if peer is None or self.is_disk_full:
            return None
        was_shown = any(each.psk == psk and each.is_shown for each in peer.kept)
        others = tuple(each for each in peer.kept if each.psk != psk)
        kept = (*others, KeptPsk(psk, is_shown or was_shown))
        self.saved[static] = replace(peer, kept=kept, is_hybrid=peer.is_hybrid or is_shown)
        return self.saved[static]

    def reread(self, peer: KnownPeer) -> KnownPeer:
        return self.saved.get(peer.static, peer)
