"""PTUNNEL_HOME as the core and the library see it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from tunnel.config import TlsOptions, make_tls_options
from tunnel.driver.endpoint import KnownPeer
from tunnel.errors import ConfigurationError, StateError, TunnelError
from tunnel.proto.pairing.grants import GrantSet
from tunnel.proto.pairing.identity import sanitise_name
from tunnel.state.home import Home
from tunnel.state.peers import Peer

SEEN_AFTER: Final = 1.0  # seconds
WATCH_INTERVAL: Final = 0.4  # seconds between looks at the peers' file: `peers forget` cuts live streams within one


def known_peer(peer: Peer) -> KnownPeer:
    return KnownPeer(name=peer.name, static=peer.static, psk=peer.psk, server=peer.server, grants=tuple(peer.grants))


class HomeStore:
    """A PeerStore on top of a Home."""

    def __init__(self, home: Path | str | None, not_saved: Callable[[str], None]) -> None:
        """`not_saved` is told, in one sentence, why a new peer will not be remembered."""
        self.not_saved = not_saved
        self.home = Home(home)
        self.config = self.home.config()
        self._stamp = self.home.peers_stamp()

    def save(self, peer: KnownPeer) -> KnownPeer:
        """Remember a newly paired peer.  A full disk does not cost the pairing of this day."""
        now = time.time()
        merged = GrantSet()
        for grant in GrantSet.from_dicts(peer.grants):  # the oldest first: a name given again means its newer place
            merged = merged.union(GrantSet((grant,)))
        grants = merged.to_dicts()
        record = Peer(
            name=peer.name, static=peer.static, psk=peer.psk, server=peer.server, grants=grants, created=now, last_seen=now
        )
        try:
            return known_peer(self.home.save_peer(record))
        except (StateError, ConfigurationError) as error:
            self.not_saved(f"{peer.name} is connected but cannot be remembered. {error}")
            return replace(peer, grants=tuple(grants))

    def load(self) -> list[KnownPeer]:
        """All remembered peers, most recently seen first.  Raises StateError."""
        stamp = self.home.peers_stamp()
        peers = [known_peer(peer) for peer in sorted(self.home.peers(), key=lambda peer: -peer.last_seen)]
        self._stamp = stamp  # not before: what could not be read is looked at again
        return peers

    async def note_seen(self, peer: KnownPeer) -> None:
        """The peer was here: written when nobody waits for bytes, in a thread, because a disk may be slow."""
        await trio.sleep(SEEN_AFTER)
        await trio.to_thread.run_sync(self._seen, peer.static)

    def _seen(self, static: bytes) -> None:
        with suppress(TunnelError):
            self.home.update_peer(static, last_seen=time.time())

    def grant(self, names: Iterable[str], grants: GrantSet) -> None:
        """Give remembered peers more to reach.  Raises ConfigurationError for an unknown name."""
        peers = [self.home.peer(name) for name in names]
        for peer in peers:
            both = GrantSet.from_dicts(peer.grants).union(grants)
            self.home.update_peer(peer.static, grants=both.to_dicts())

    async def watch(self, changed: Callable[[list[KnownPeer]], None]) -> None:
        """Tell of every change that any process makes to the peers, until cancelled."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            if self.home.peers_stamp() != self._stamp:
                try:
                    changed(self.load())
                except StateError:
                    continue  # damaged, or no descriptor is left: what we know stays until it can be read again

    def choose(self, name: str | None) -> KnownPeer:
        """The peer called `name`, or the only one there is.  Raises ConfigurationError."""
        if name is not None:
            return known_peer(self.home.peer(name))
        peers = self.home.peers()
        if len(peers) == 1:
            return known_peer(peers[0])
        if not peers:
            raise ConfigurationError(
                "No peer is remembered yet: connect with a code from 'ptunnel expose' on the other computer."
            )
        names = ", ".join(peer.name for peer in peers[:10])
        raise ConfigurationError(f"Several peers are remembered: name one of {names}.")

    def server(self, given: str | None) -> str | None:
        """The server to use: the one given, PTUNNEL_SERVER, or the configured one."""
        if given:
            return given
        configured: Any = os.environ.get("PTUNNEL_SERVER") or self.config.get("server")
        if configured is not None and not isinstance(configured, str):
            raise ConfigurationError("config.toml: server is a text, HOST or HOST:PORT.")
        return configured or None

    def access_token(self) -> bytes:
        """PTUNNEL_ACCESS_TOKEN, or the configured one: for servers that let in only those who hold it."""
        configured: Any = os.environ.get("PTUNNEL_ACCESS_TOKEN") or self.config.get("access_token") or ""
        if not isinstance(configured, str):
            raise ConfigurationError("config.toml: access_token is a text.")
        return configured.encode()

    def wants_port_mapping(self, given: bool | None) -> bool:
        """As given, PTUNNEL_PORTMAP, or the configured one, `on` or `off`; on where nothing is said."""
        if given is not None:
            return given
        configured: Any = os.environ.get("PTUNNEL_PORTMAP") or self.config.get("portmap") or "on"
        if configured not in ("on", "off"):
            raise ConfigurationError("PTUNNEL_PORTMAP and portmap in config.toml are on or off.")
        return bool(configured == "on")

    def tls(self, given: TlsOptions | None) -> TlsOptions:
        """As given, else PTUNNEL_TLS_PORT and PTUNNEL_TLS_FINGERPRINT, or as configured.  Raises ConfigurationError."""
        if given is not None:
            return given
        port: Any = os.environ.get("PTUNNEL_TLS_PORT") or self.config.get("tls_port")
        fingerprint: Any = os.environ.get("PTUNNEL_TLS_FINGERPRINT") or self.config.get("tls_fingerprint")
        if not all(each is None or isinstance(each, str) for each in (port, fingerprint)):
            raise ConfigurationError("config.toml: tls_port and tls_fingerprint are texts.")
        places = {"tls_port": "PTUNNEL_TLS_PORT or tls_port", "tls_fingerprint": "PTUNNEL_TLS_FINGERPRINT or tls_fingerprint"}
        return make_tls_options(port, fingerprint, places)

    def name(self, given: str | None) -> str:
        """How we introduce ourselves."""
        configured = given or self.config.get("name")
        return sanitise_name(configured if isinstance(configured, str) else socket.gethostname())
