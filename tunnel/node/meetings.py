"""Everything by which an endpoint meets peers: codes, rooms, dialing, answering; and what comes of it, the peerings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, assert_never

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.node.channels import Channels
from tunnel.node.clocks import LOOK_INTERVAL, Clocks
from tunnel.node.context import Context
from tunnel.node.events import KnownPeer, PeeringRestarted, Problem, ServerReached, Troubled
from tunnel.node.flows.answer import IkResponder
from tunnel.node.flows.claim_code import ConnectorPairing
from tunnel.node.flows.dial import Dialer, Listener
from tunnel.node.flows.expose_code import FOR_ONE, CodeTerms, ExposerPairing
from tunnel.node.freshness import Refused
from tunnel.node.handshakes import receiver_index
from tunnel.node.machines import Twins
from tunnel.node.peering import Peering
from tunnel.node.peerings import Peerings
from tunnel.node.pool import CloseRoute, OpenRoute
from tunnel.node.servers import host_of
from tunnel.pairing.code import Purpose, parse_code, require_purpose
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import (
    ChannelMoved,
    ClientEvent,
    FallbackUnwanted,
    FallbackWanted,
    Lost,
    Reached,
    ReflexiveChanged,
    Told,
)
from tunnel.rendezvous.messages import ChannelMessage
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto.handshake import FINISH, INIT, Completed, Pattern, parse_init
from tunnel.transport.crypto.params import Params
from tunnel.units import Buffer, Instant, PathKey


class Meetings:
    """The flows under way and the peerings that stand."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.peerings = Peerings(context)
        context.control.ask = self._poll_timeout
        self._clocks = Clocks(context)
        self._look_at: Instant | None = None  # at the calendar
        self._lost: set[str] = set()  # servers that fell silent, and have not answered since
        self._twins = Twins(context)
        self._listener = Listener(context, self._clocks, self._twins)
        answerer = self._listener.answerer
        context.awaits = self._listener.awaits
        self._responder = IkResponder(context, self._clocks, self.peerings.find, lambda: self._listener.is_on, answerer.refused)
        answerer.alive = self._on_alive
        self._exposing: list[ExposerPairing] = []
        self._claiming: list[ConnectorPairing] = []
        self._dialers: dict[Peering, Dialer] = {}
        self._channels = Channels(context, lambda: self.peerings.all, answerer)

    # --- verbs, as Endpoint has them

    def offer_code(
        self, now: Instant, server: str, *, grants: tuple[dict[str, Any], ...], lent: tuple[dict[str, Any], ...] = (),
        keep: bool, terms: CodeTerms = FOR_ONE,
    ) -> ExposerPairing:  # fmt: skip
        def adopt(at: Instant, completed: Completed, path: PathKey, instance: int, is_initiator: bool) -> Peering | None:
            peering = self._adopt(at, completed, path, instance, is_initiator, server=server, grants=flow.grants)
            if peering is not None and lent:
                peering.peer = replace(peering.peer, lent=(*peering.peer.lent, *lent))
                self._context.peers[peering.peer.static] = peering.peer
            return peering

        client = self._context.clients[server]
        flow = ExposerPairing(self._context, client, grants=grants, keep=keep, adopt=adopt, now=now, terms=terms)
        self._exposing.append(flow)
        return flow

    def claim_code(
        self,
        now: Instant,
        server: str,
        code: str,
        *,
        expected: KnownPeer | None = None,
        purpose: Purpose = Purpose.PORTS,
    ) -> ConnectorPairing:
        """`expected`: it has to be this peer, with the key that we remember.  `purpose`: what the code has to be for."""
        parsed = parse_code(code)
        require_purpose(parsed, purpose)

        def adopt(at: Instant, completed: Completed, path: PathKey, instance: int, is_initiator: bool) -> Peering | None:
            if expected is not None and completed.remote_static != expected.static:
                text = f"The key of {expected.name} has changed: it is another machine, or somebody in between. Nothing was sent."
                self._context.emit(Troubled(problem=Problem.KEY_CHANGED, text=text, is_final=True))
                return None
            return self._adopt(at, completed, path, instance, is_initiator, server=server, grants=())

        client = self._context.clients[server]
        flow = ConnectorPairing(self._context, client, parsed, adopt=adopt, now=now, purpose=purpose)
        self._claiming.append(flow)
        return flow

    def withdraw_code(self, now: Instant, flow: ExposerPairing) -> None:
        """The code lets nobody in any more, nor does a fresh one follow."""
        if flow in self._exposing:
            self._exposing.remove(flow)
            with flow.wall(now):
                flow.close(now)
        self.pump(now)

    def dial(self, now: Instant, peer: KnownPeer, server: str) -> Peering:
        context = self._context
        peering = Peering(context, peer, is_initiator=True, server=server, instance=context.new_instance())
        self.peerings.add(peering)
        context.restless[peering] = None
        self._dialers[peering] = Dialer(context, self._clocks, peering, context.clients[server], now)
        self.pump(now)
        return peering

    def listen(self, now: Instant) -> None:
        self._listener.start(now)

    def set_peers(self, now: Instant, peers: Iterable[KnownPeer]) -> None:
        known = {peer.static: peer for peer in peers}
        gone = self._context.peers.keys() - known.keys()
        self._context.peers = known
        for static in gone:
            self._responder.forget(static)
        for peering in self.peerings.live:
            peer = known.get(peering.peer.static)
            if peer is None:
                peering.close(now, CloseCode.FORGOTTEN, "this peer was forgotten")
            else:
                self._renew_peer(now, peering, peer)
        if gone:
            self._channels.forget(now, gone)
        self._listener.update(now)
        self.pump(now)

    def _renew_peer(self, now: Instant, peering: Peering, peer: KnownPeer) -> None:
        """Another psk counts from the next handshake on; the connection that stands is not touched."""
        is_rekeyed, peering.peer = peer.psk != peering.peer.psk, peer
        if not is_rekeyed:
            return
        handshake = peering.handshake
        if handshake is not None and handshake.completed is None:
            peering.end_handshake()
        dialer = self._dialers.get(peering)
        if dialer is not None:
            dialer.psk_changed(now)

    def close(self, now: Instant, text: str = "the other side has ended") -> None:
        for flow in (*self._exposing, *self._claiming):
            with flow.wall(now):
                flow.close(now)
        for peering in self.peerings.live:
            peering.close(now, CloseCode.NO_ERROR, text)
        for peering, dialer in self._dialers.items():
            with peering.wall(now):
                dialer.close(now)

    def network_changed(self, now: Instant) -> None:
        for peering in self.peerings.live:
            peering.network_changed(now)
        self.pump(now)

    def give_up_keys(self, now: Instant) -> bool:
        """Seal nothing more under keys that a copy of this process may hold too; True when there were any.

        Handshakes under way begin anew, since their ephemeral keys may be there too.
        """
        had_any = self._responder.forget_all()
        for peering in self.peerings.live:
            had_any |= peering.connection is not None
            peering.give_up_keys(now)
        return had_any

    def servers_changed(self, now: Instant) -> None:
        self._look(now)

    def _look(self, now: Instant) -> None:
        """At the calendar: who waits does so in the rooms of now."""
        self._look_at = Instant(now + LOOK_INTERVAL) if self._context.clients else None
        self._clocks.look(now)
        self._listener.update(now)
        for dialer in self._dialers.values():
            dialer.follow(now)

    # --- inputs

    def handle_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> bool:
        """One of 0x70 to 0x74, without the channel header.  False when nothing came of it but a counted drop."""
        context = self._context
        before = context.drops.total()
        self._handle_handshake(now, path, datagram)
        return context.drops.total() == before or bool(context.out or context.events)

    def _handle_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        drops, demux = self._context.drops, self._context.demux
        kind = datagram[0]
        try:
            if kind == INIT and parse_init(datagram).pattern is Pattern.IK:
                self._responder.handle_init(now, path, datagram)
                return
            whose = (
                demux.channels.get(path.prefix or path.remote) if kind == INIT else demux.handshakes.get(receiver_index(datagram))
            )
        except MalformedPacket:
            drops["handshake malformed"] += 1
            return
        if isinstance(whose, Peering):
            self._on_answer(now, whose, path, datagram)
        elif whose is not None:
            whose.on_handshake(now, path, datagram)
        elif kind == INIT:
            drops["XX init for no code or channel of ours"] += 1
        else:
            drops["finish for nobody" if kind == FINISH else "handshake answer for nobody"] += 1

    def _on_answer(self, now: Instant, peering: Peering, path: PathKey, datagram: Buffer) -> None:
        """To an IK init of ours."""
        handshake = peering.handshake
        if handshake is None:
            return
        with peering.wall(now):
            completed = handshake.handle_datagram(now, datagram)
            peering.touch()
            if handshake.behind:
                self._clocks.is_behind(peering.peer, handshake.behind)
            if completed is not None:
                self._dialed(now, peering, completed, handshake.proven(path))

    def confirm(self, now: Instant, datagram: Buffer) -> Peering | None:
        """A transport datagram that no connection knows: it may be the first under keys that we answered with.

        It proves the path that our answer took; where it seems to come from itself may be forged.
        """
        pending = self._responder.confirm(datagram)
        if pending is None:
            judge = self._context.demux.verdicts.get(int.from_bytes(datagram[1:5], "big"))
            if judge is not None:
                judge(datagram)
            return None
        completed = pending.completed
        peer = self._context.peers.get(completed.remote_static)
        if peer is None:
            return None
        peering = self.peerings.find(completed.remote_static, completed.params.instance)
        if peering is not None and peering.instance == pending.instance and peering.connection is not None:
            if not peering.hybrid.accepts(completed):
                self._context.drops["handshake under older keys"] += 1
                return None
            with peering.wall(now):
                peering.install(now, completed, pending.path)
                self.peerings.index(peering)
            return peering
        self.peerings.make_room(now, peer)
        peering = Peering(self._context, peer, is_initiator=False, server=peer.server, instance=pending.instance)
        self.peerings.connect(now, peering, completed, pending.path)
        return peering

    def handle_timeout(self, now: Instant) -> None:
        self._context.clients.handle_timeout(now)
        for flow in self._exposing:
            with flow.wall(now):
                flow.on_time(now)
        with self._context.wall("meeting", "kept remembered peers from being listened for"):
            if self._look_at is not None and now >= self._look_at:
                self._look(now)
            self._responder.expire(now)
            self._channels.handle_timeout(now)
            self._twins.on_time(now)

    def _poll_timeout(self) -> Instant | None:
        """Of the flows and the clients; the peerings have their own entries in the agenda."""
        at = earliest(
            self._look_at,
            self._context.clients.poll_timeout(),
            self._responder.poll_timeout(),
            self._channels.poll_timeout(),
            self._twins.poll_timeout(),
        )
        for flow in (*self._exposing, *self._claiming):
            at = earliest(at, flow.poll_timeout())
        for peering in self._context.restless:
            dialer = self._dialers.get(peering)
            if dialer is not None:
                at = earliest(at, dialer.poll_timeout())
        return at

    def pump(self, now: Instant) -> None:
        """Everything that follows from what just came in: server events, due repetitions, meetings that are needed."""
        self._context.control.doubt()
        for name, client in self._context.clients.items():
            while (event := client.poll_event()) is not None:
                with self._context.wall("server", f"left something unread that the server {host_of(name)} said"):
                    self._on_server(now, name, client, event)
        for claim in self._claiming:
            with claim.wall(now):
                claim.on_time(now)
        if any(claim.is_done for claim in self._claiming):
            self._claiming = [claim for claim in self._claiming if not claim.is_done]
        for peering in list(self._context.restless):
            try:
                if peering.is_closed:
                    self._retire(now, peering)
                else:
                    self._meet(now, peering)
            except Exception as error:
                peering.fail(now, error)

    def _meet(self, now: Instant, peering: Peering) -> None:
        """Dial where the peering asks for it.  It rests once nothing of that is left to do."""
        dialer = self._dialers.get(peering)
        if dialer is not None:
            dialer.on_time(now)
        elif peering.needs_meeting:
            client = self._context.clients.get(peering.server or "")
            if client is None:
                return
            peering.needs_meeting = False
            dialer = self._dialers[peering] = Dialer(self._context, self._clocks, peering, client, now)
        if dialer is None or not dialer.is_busy:
            del self._context.restless[peering]
        peering.pump(now)

    def _on_server(self, now: Instant, name: str, client: Client, event: ClientEvent) -> None:
        """To whom it is for, or what a server says to all of us."""
        context = self._context
        match event:
            case Reached(reflexive=reflexive):
                context.clients.reached(now, name)
                is_again = name in self._lost
                self._lost.discard(name)
                context.emit(ServerReached(server=name, reflexive=tuple(reflexive.values()), is_again=is_again))
                self._refresh_candidates(now, name)
                self._look(now)
            case ReflexiveChanged():
                self._refresh_candidates(now, name)
            case Lost():
                self._lost.add(name)
                host = host_of(name)
                text = f"The server {host} does not answer any more: still trying. Direct connections are not touched."
                context.emit(Troubled(problem=Problem.SERVER_LOST, text=text))
            case FallbackWanted():
                context.pool.orders.append(OpenRoute(name))
            case FallbackUnwanted():
                context.pool.orders.append(CloseRoute(name))
            case Told() | ChannelMoved():
                if isinstance(event, Told) and isinstance(event.message, ChannelMessage):
                    self._channels.arrived(now, event.message.channel)
                hearer = event.hearer or self._listener  # who waits for everybody hears what is said of nothing else
                hearer.hear(now, client, event)
            case _:
                assert_never(event)

    def _refresh_candidates(self, now: Instant, server: str) -> None:
        for peering in self.peerings.live:
            if peering.puncher is not None and self._context.clients.is_part(server, peering.server):
                peering.refresh_candidates(now)
                peering.pump(now)

    def _dialed(self, now: Instant, peering: Peering, completed: Completed, path: PathKey) -> None:
        """Our own IK handshake ended: a first connection, new keys for it, or a peer that has forgotten it."""
        peering.end_handshake()
        dialer = self._dialers.get(peering)
        if dialer is not None and dialer.is_dialing:
            dialer.answered(now)
        connection = peering.connection
        if connection is None:
            self.peerings.connect(now, peering, completed, path)
        elif completed.params.instance == connection.remote_instance and not connection.is_closed:
            if not peering.hybrid.accepts(completed):
                peering.hybrid.refused()
                return
            peering.install(now, completed, path)
            self.peerings.index(peering)
        elif peering.is_initiator:
            was_started = peering.is_started
            self.peerings.connect(now, peering, completed, path)
            if was_started:
                self._context.emit(PeeringRestarted(peering=peering))
        else:
            peering.close(now, CloseCode.REPLACED, "the peer has restarted")

    def _on_alive(self, now: Instant, peer: KnownPeer, params: Params, refused: Refused | None) -> None:
        """Whoever asked by a question of identity has the key that we remember."""
        if peer is self._twins.me:
            self._twins.met(params)
        elif refused is not None and not params.hybrid:  # who does that step knows challenges: old inits are not its own
            self._responder.alive(now, peer, refused)

    def _adopt(
        self,
        now: Instant,
        completed: Completed,
        path: PathKey,
        instance: int,
        is_initiator: bool,
        *,
        server: str,
        grants: tuple[dict[str, Any], ...],
    ) -> Peering | None:
        peering = self.peerings.adopt(now, completed, path, instance, is_initiator, server=server, grants=grants)
        self._listener.update(now)
        return peering

    def _retire(self, now: Instant, peering: Peering) -> None:
        dialer = self._dialers.pop(peering, None)
        if dialer is not None:
            dialer.close(now)
        self.peerings.retire(now, peering)
