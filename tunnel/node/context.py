"""The parts that the flows of one endpoint share: identity, sources of chance and time, clients, and the way out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.core.trace import Drops, Trace, Traces
from tunnel.node.agenda import Agenda
from tunnel.node.carrying import Carrying
from tunnel.node.demux import Demux
from tunnel.node.events import EndpointEvent, Faulted, KnownPeer
from tunnel.node.pool import SocketPool
from tunnel.node.servers import Servers
from tunnel.node.turns import Turns
from tunnel.node.walls import Wall
from tunnel.pairing.code import Purpose
from tunnel.pairing.identity import machine_number
from tunnel.transport.connection.opening import ROOM
from tunnel.transport.connection.records import MOST_PARTS
from tunnel.transport.crypto import kem
from tunnel.transport.crypto.params import MACHINE_SIZE, ML_KEM_768, PATH_AUTO, PATH_DIRECT, PATH_RELAY, Params
from tunnel.transport.packet.slots import Plains
from tunnel.units import Instant, PathKey, SocketId

if TYPE_CHECKING:
    import random

    from tunnel.nat.memory import Remembered
    from tunnel.node.peering import Peering
    from tunnel.node.punching import LocalAddresses, LocalSocket

MAX_QUEUED: Final = 256  # handshake datagrams waiting to leave; the oldest is dropped

PATH_POLICIES: Final = {"auto": PATH_AUTO, "direct": PATH_DIRECT, "relay": PATH_RELAY}
POLICY_NAMES: Final = {number: name for name, number in PATH_POLICIES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """The settings that stay the same while the endpoint lives."""

    name: str  # how we introduce ourselves, at most 64 bytes of UTF-8
    aeads: tuple[int, ...]
    receive_buffer: int  # bytes, of the smallest socket
    path_policy: str = "auto"
    repeat: str = "auto"  # whether small datagrams are sent twice: auto, always or off
    repairs: bool = True  # lost packets of bulk in rooms are sent again
    machine_id: bytes = b""  # what tells this machine from others; empty: nothing does
    place_id: bytes = b""  # what tells this home from copies of it that are in use now; empty: the machine does
    is_hybrid: bool = True  # False: as versions that know no step after handshakes


class PeerStore(Protocol):
    """Where peers are remembered; the core opens no file."""

    def save(self, peer: KnownPeer) -> KnownPeer:
        """Remember `peer`; returns it with the name that it got."""

    def unsave(self, peer: KnownPeer) -> KnownPeer | None:
        """The pairing that saved `peer` came to nothing: what was remembered of it before is so again, and returned."""

    def keep(self, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        """Add a psk to those of a remembered peer, or note that the peer has shown it; returns the peer as saved.

        Returns when that is on disk; None: it is not, and will not be.
        """

    def reread(self, peer: KnownPeer) -> KnownPeer:
        """The peer as other processes may have left it meanwhile."""


class Context:
    """One of these for each endpoint, handed to every flow."""

    def __init__(
        self,
        *,
        config: EndpointConfig,
        static_key: bytes,
        store: PeerStore,
        entropy: Callable[[int], bytes],
        rng: random.Random,
        wall_ns: Callable[[], int],
        traces: Traces | None,
    ) -> None:
        self.config = config
        self.hybrid = ML_KEM_768 if config.is_hybrid and kem.is_available() else 0
        self.static = X25519PrivateKey.from_private_bytes(static_key)
        self.static_public = self.static.public_key().public_bytes_raw()
        self.machine = machine_number(static_key, config.machine_id, MACHINE_SIZE)
        #: What others of our own key are told instead.
        self.place = machine_number(static_key, config.place_id or config.machine_id, MACHINE_SIZE)
        self.store = store
        self.entropy = entropy
        self.rng = rng
        self.wall_ns = wall_ns
        self.traces = traces
        self.drops = Drops()
        self.pool = SocketPool(self.drops)
        self.turns = Turns()
        self.carrying = Carrying(self.drops, entropy)
        #: Whether we wait for a peer by ourselves, where it would dial us now.
        self.awaits: Callable[[Instant, Peering], bool] = lambda now, peering: False
        self.events: deque[EndpointEvent] = deque()
        self.out: deque[tuple[PathKey, bytes]] = deque()
        self.clients = Servers(self)
        self.agenda: Agenda[Peering] = Agenda()
        self.control = self.agenda.enter(None, lambda: None)  # of everything but the peerings, which Meetings looks after
        #: Peerings that need their meeting: they are to be dialed, or closed and not yet gone.
        self.restless: dict[Peering, None] = {}
        self.peers: dict[bytes, KnownPeer] = {}  # by static key
        self.sockets: dict[SocketId, LocalSocket] = {}
        self.memory: dict[bytes, Remembered] = {}  # by static key: what worked from the network that we are in
        self.candidates: LocalAddresses = {}
        self.demux = Demux(entropy)
        self.plains = Plains(ROOM)  # where all connections open what comes, one batch after the other
        self._last_timestamp = 0

    def emit(self, event: EndpointEvent) -> None:
        self.events.append(event)

    def fault(self, place: str, what: str, error: Exception) -> None:
        """Nobody foresaw `error`, which was met while something of one source was handled: it has done `what`, and no more."""
        self.drops[f"fault: {place}"] += 1
        self.emit(Faulted(place=place, what=what, error=error))

    def wall(self, place: str, what: str) -> Wall:
        """Around what has nothing to end."""
        return Wall(lambda error: self.fault(place, what, error))

    def trace(self, now: Instant, peer: str, instance: int, *, is_initiator: bool) -> Trace | None:
        """Return the trace of the connection `instance` that begins now."""
        return None if self.traces is None else self.traces.open(now, peer=peer, instance=instance, is_initiator=is_initiator)

    def send(self, key: PathKey, datagram: bytes) -> None:
        """Queue one handshake datagram, without the channel header of `key`."""
        if len(self.out) >= MAX_QUEUED:
            self.out.popleft()
            self.drops["handshake queue full"] += 1
        self.out.append((key, datagram))

    def new_instance(self) -> int:
        return int.from_bytes(self.entropy(8), "big") or 1

    def timestamp(self) -> int:
        """Nanoseconds of the calendar, strictly increasing."""
        self._last_timestamp = max(self.wall_ns(), self._last_timestamp + 1)
        return self._last_timestamp

    def unix_time(self) -> float:
        return self.wall_ns() / 1e9

    def params(self, instance: int, resume: int = 0, *, purpose: Purpose | None = None) -> Params:
        """Return our handshake parameters; `purpose` is that of the code, in a first meeting."""
        config = self.config
        return Params(
            instance=instance,
            name=config.name,
            aeads=config.aeads,
            receive_buffer=config.receive_buffer,
            path_policy=PATH_POLICIES[config.path_policy],
            resume=resume,
            record_parts=MOST_PARTS,
            purpose=0 if purpose is None else purpose.value,
            machine=self.machine,
            hybrid=self.hybrid,
        )

    def remember(self, peer: KnownPeer) -> KnownPeer:
        """Save a newly paired peer; the store has the last word on its name."""
        saved = peer
        with self.wall("state", f"kept {peer.name} from being remembered"):
            saved = self.store.save(peer)
        self.peers[saved.static] = saved
        return saved

    def unremember(self, peer: KnownPeer) -> None:
        """The other side has never confirmed the pairing that `peer` was remembered by."""
        before: KnownPeer | None = None
        with self.wall("state", f"kept {peer.name} from being forgotten"):
            before = self.store.unsave(peer)
        self.peers.pop(peer.static, None)
        if before is not None:
            self.peers[peer.static] = before

    def does_step(self, params: Params) -> bool:
        """Whether we and the peer that said `params` do the same hybrid step."""
        return self.hybrid != 0 and params.hybrid == self.hybrid

    def known(self, peer: KnownPeer) -> KnownPeer:
        """The peer as it is now."""
        return self.peers.get(peer.static, peer)

    def keep(self, peer: KnownPeer, psk: bytes, *, is_shown: bool) -> bool:
        """Add to the psks of a peer, or note that it has shown one; True when that is on disk."""
        saved = None
        with self.wall("state", f"kept a key of {peer.name} from being saved"):
            saved = self.store.keep(peer.static, psk, is_shown=is_shown)
        if saved is not None:
            self._renew(peer, saved)
        return saved is not None

    def refresh(self, peer: KnownPeer) -> None:
        """Another process of ours may have agreed on keys with the peer a moment ago."""
        with self.wall("state", f"kept the keys of {peer.name} from being read"):
            self._renew(peer, self.store.reread(self.known(peer)))

    def _renew(self, peer: KnownPeer, saved: KnownPeer) -> None:
        if peer.static in self.peers:
            self.peers[peer.static] = replace(self.peers[peer.static], kept=saved.kept, is_hybrid=saved.is_hybrid)


def combine_policies(ours: int, theirs: int) -> str | None:
    """The stricter of the two path policies; None where they contradict one another."""
    if ours == theirs or theirs == PATH_AUTO:
        return POLICY_NAMES[ours]
    if ours == PATH_AUTO:
        return POLICY_NAMES[theirs]
    return None
