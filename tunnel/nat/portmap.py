"""Keeps one UDP port mapped at the router, by PCP, NAT-PMP or UPnP-IGD: whichever it speaks, the best where it speaks several.

All three are asked at once whether the router speaks them, by requests that change nothing; then one mapping is made by the best
that answered.  (Three mappings of one port share one entry in many routers, so that removing the spare ones would remove ours.)
It is renewed at half its life, made again when the router has forgotten it, and removed at the end.

Sans IO: datagrams for the router's port 5351 come from poll_transmit; what UPnP needs done over HTTP comes from poll_upnp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.errors import MalformedPacket
from tunnel.nat import pcp, upnp
from tunnel.nat.candidate import is_allowed
from tunnel.nat.mapping_states import (
    Cue,
    LookUpPort,
    MapPort,
    PortMapping,
    Protocol,
    SearchRouter,
    Stage,
    UnmapPort,
    UpnpTask,
    Way,
)
from tunnel.nat.pcp import Answer, Reply
from tunnel.units import Address, Buffer, Instant, Seconds

if TYPE_CHECKING:
    import random

LIFETIME: Final = Seconds(3600.0)  # asked for; a crash leaves the mapping for no longer
MAX_LIFETIME: Final = Seconds(86_400.0)  # believed; RFC 6887 §15
MIN_RENEWAL: Final = Seconds(4.0)  # between renewals; RFC 6887 §11.2.1
UPNP_RENEWAL: Final = Seconds(600.0)  # at least so often: a restart of the router shows in nothing else
WATCH_INTERVAL: Final = Seconds(120.0)  # between looks at the epoch of PCP and NAT-PMP, 60 bytes each
GRACE: Final = Seconds(0.1)  # for a better protocol to answer, once a worse one has
FIRST_INTERVAL: Final = Seconds(0.25)  # to the second transmission, doubling; RFC 6886 §3.1
MAX_TRIES: Final = 5  # of one request: 7.75 s
MAX_PORTS_TRIED: Final = 4  # by UPnP, where somebody else has the port we wish for
HANDOVER: Final = Seconds(120.0)  # before the end of a lease that UPnP will not renew, another port is asked for beside it
RETRY_AFTER: Final = Seconds(30.0)  # before a router that granted nothing is asked again, doubling ...
MAX_RETRY_AFTER: Final = Seconds(900.0)  # ... up to this


class PortMapper:
    """One port of ours, at one router."""

    def __init__(
        self,
        *,
        own: str,
        port: int,
        now: Instant,
        rng: random.Random,
        entropy: Callable[[int], bytes],
        lifetime: Seconds = LIFETIME,
        protocols: Iterable[Protocol] = tuple(Protocol),
    ) -> None:
        """`own` is our address as the router sees it, `port` ours there, and the one we wish for outside."""
        self.mapping: PortMapping | None = None
        self.drops = Drops()
        self.trouble = "the router answers neither PCP, NAT-PMP nor UPnP"  # why there is no mapping
        self._own = own
        self._port = port
        self._wish = port  # outside; what was granted once is wished for again
        self._rng = rng
        self._nonce = entropy(pcp.NONCE_SIZE)
        self._lifetime = lifetime
        self._ways = {protocol: Way(protocol, now) for protocol in Protocol if protocol in set(protocols)}
        self._begun = now
        self._choose_at: Instant | None = None
        self._retry_at: Instant | None = None
        self._retry_after = RETRY_AFTER
        self._is_closed = False
        self._upnp_lifetime = round(lifetime)
        self._upnp_ports_tried = 0
        self._asks_whose = False  # the port that we wish for, which the router says is taken
        self._leaving: tuple[int, Instant] | None = None  # a port outside that was ours before, and when it is taken back
        self._useless: list[bytes] = []  # requests that take back what was granted and is no use

    # --- what became of it

    @property
    def is_finished(self) -> bool:
        """Closed, and the router has nothing more to be told."""
        return self._is_closed and all(way.stage is Stage.REMOVED for way in self._ways.values())

    def stage(self, protocol: Protocol) -> Stage:
        return self._ways[protocol].stage if protocol in self._ways else Stage.FAILED

    # --- inputs

    def handle_datagram(self, now: Instant, data: Buffer) -> None:
        """One datagram from the router's port 5351; the caller has looked at its source."""
        try:
            reply = pcp.decode_reply(data)
        except MalformedPacket:
            self.drops["port mapping answer malformed"] += 1
            return
        if self._retry_at is not None:  # it announces itself: it has just started
            self._restart(now)
        match reply.answer:
            case Answer.PCP_ANNOUNCE | Answer.PCP_MAPPING:
                self._on_pcp(now, reply)
            case Answer.NAT_PMP_EXTERNAL | Answer.NAT_PMP_MAPPING:
                self._on_nat_pmp(now, reply)
        self._choose(now)

    def upnp_found(self, now: Instant) -> None:
        way = self._ways[Protocol.UPNP]
        if way.stage is Stage.PROBING:
            way.move(now, Cue.ANSWERED)
        self._choose(now)

    def upnp_mapped(self, now: Instant, external: Address, lifetime: int) -> None:
        way = self._ways[Protocol.UPNP]
        if way.stage in (Stage.MAPPING, Stage.RENEWING):
            self._granted(now, way, external, Seconds(float(lifetime)) if lifetime else MAX_LIFETIME)
        self._choose(now)

    def upnp_looked_up(self, now: Instant, external: Address, entry: upnp.Entry | None) -> None:
        """Take the holder of the port that the router did not give us; None where it does not tell."""
        way = self._ways[Protocol.UPNP]
        if way.stage not in (Stage.MAPPING, Stage.RENEWING):
            return
        mapping = self.mapping
        held = mapping if mapping is not None and mapping.external.port == self._wish and way.stage is Stage.RENEWING else None
        is_ours = (entry.client, entry.port) == (self._own, self._port) if entry is not None else held is not None
        if not is_ours:
            if held is not None:
                way.move(now, Cue.FORGOTTEN)  # the router restarted, and somebody else was faster
            self._try_another_port(now, way)
            return
        left = Seconds(held.expires_at - now) if held is not None and self._upnp_lifetime else MAX_LIFETIME
        if entry is not None and entry.lifetime:
            left = min(left, Seconds(float(entry.lifetime)))
        if left > HANDOVER:
            self._granted(now, way, external, left)  # it stands: this router only does not grant the same thing twice
        else:
            self._leaving = (self._wish, Instant(now + max(0.0, left - MIN_RENEWAL)))
            self._try_another_port(now, way)

    def upnp_removed(self, now: Instant, external_port: int) -> None:
        """Also where the router did not answer: it is told once."""
        way = self._ways[Protocol.UPNP]
        if way.stage is not Stage.REMOVING or external_port != self._wish:
            return
        if self._leaving is None:
            way.move(now, Cue.GAVE_UP)
        else:
            (self._wish, _), self._leaving = self._leaving, None
            way.next_at = now

    def upnp_failed(self, now: Instant, code: int, why: str) -> None:
        """`code` is UPnP's (upnp.decode_error), 0 where the router did not answer."""
        way = self._ways[Protocol.UPNP]
        if way.stage in (Stage.MAPPING, Stage.RENEWING):
            if code in upnp.NO_LEASES and self._upnp_lifetime:
                self._upnp_lifetime = 0
                way.next_at = now
                return
            if code == upnp.SAME_PORT and self._wish != self._port:
                self._wish = self._port
                way.next_at = now
                return
            if code in (upnp.CONFLICT, upnp.CONFLICT_WITH_OTHER):
                self._asks_whose = True
                way.next_at = now
                return
            if code == upnp.NO_PORTS and way.stage is Stage.MAPPING:
                self._try_another_port(now, way, why)
                return
        self._failed(now, way, why)
        self._choose(now)

    def _try_another_port(self, now: Instant, way: Way, why: str = "the router has given its ports to others") -> None:
        if self._upnp_ports_tried < MAX_PORTS_TRIED:
            self._upnp_ports_tried += 1
            self._wish = self._rng.randrange(1024, 65_536)
            way.next_at = now
        else:
            self._failed(now, way, why)
            self._choose(now)

    def handle_timeout(self, now: Instant) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._restart(now)
        mapping = self.mapping
        if mapping is not None and now >= mapping.expires_at and not self._is_closed:
            self.mapping = None
            self._failed(now, self._ways[mapping.protocol], "the router no longer answers")
            self._retry_after = RETRY_AFTER
            self._restart(now)
        for way in self._ways.values():
            if way.stage is Stage.HELD and way.next_at is not None and now >= way.next_at:
                way.move(now, Cue.RENEWAL_DUE)
            if way.tries >= MAX_TRIES and way.next_at is not None and now >= way.next_at:
                self._failed(now, way, "the router no longer answers")
        self._choose(now)

    def close(self, now: Instant) -> None:
        """Take back what was granted: go on until `is_finished`, or for as long as the goodbye may last."""
        self._is_closed = True
        self._retry_at = self._choose_at = None
        for way in self._ways.values():
            way.move(now, Cue.CLOSED)

    # --- outputs

    def poll_transmit(self, now: Instant) -> bytes | None:
        """The next datagram for the router's port 5351; call until None."""
        if self._useless:
            return self._useless.pop()
        for way in self._ways.values():
            if way.protocol is Protocol.UPNP:
                continue
            if way.stage is Stage.HELD and way.watch_at is not None and now >= way.watch_at:
                way.watch_at = Instant(now + WATCH_INTERVAL)
                return self._probe(way)
            if way.next_at is None or now < way.next_at or way.stage is Stage.HELD or way.tries >= MAX_TRIES:
                continue
            way.next_at = Instant(now + FIRST_INTERVAL * 2**way.tries)
            way.tries += 1
            return self._request(way)
        return None

    def poll_upnp(self, now: Instant) -> UpnpTask | None:
        """Return the next HTTP task, one at a time; one of the upnp_ verbs takes its outcome."""
        way = self._ways.get(Protocol.UPNP)
        if self._leaving is not None and now >= self._leaving[1] and not self._is_closed:
            port, self._leaving = self._leaving[0], None
            return UnmapPort(port)
        if way is None or way.next_at is None or now < way.next_at:
            return None
        match way.stage:
            case Stage.PROBING:
                task: UpnpTask = SearchRouter()
            case Stage.MAPPING | Stage.RENEWING:
                task = LookUpPort(self._wish) if self._asks_whose else MapPort(self._wish, self._upnp_lifetime)
                self._asks_whose = False
            case Stage.REMOVING:
                task = UnmapPort(self._wish)
            case _:
                return None
        way.next_at = None
        return task

    def poll_timeout(self) -> Instant | None:
        at = earliest(self._choose_at, self._retry_at)
        for way in self._ways.values():
            at = earliest(at, way.next_at, way.watch_at)
        if self.mapping is not None and not self._is_closed:
            at = earliest(at, self.mapping.expires_at)
        if self._leaving is not None and not self._is_closed:
            at = earliest(at, self._leaving[1])
        return at

    # --- inside

    def _request(self, way: Way) -> bytes:
        if way.stage is Stage.PROBING:
            return self._probe(way)
        lifetime = 0 if way.stage is Stage.REMOVING else round(self._lifetime)
        if way.protocol is Protocol.NAT_PMP:
            return pcp.encode_nat_pmp_map(self._port, self._wish if lifetime else 0, lifetime)
        mapping = self.mapping
        wished = mapping.external if mapping is not None else Address("0.0.0.0", self._wish)
        return pcp.encode_pcp_map(self._own, self._nonce, self._port, wished if lifetime else None, lifetime)

    def _probe(self, way: Way) -> bytes:
        return pcp.encode_announce(self._own) if way.protocol is Protocol.PCP else pcp.encode_external_request()

    def _on_pcp(self, now: Instant, reply: Reply) -> None:
        if reply.result == pcp.UNSUPPORTED_VERSION:  # whom we asked in version 0 speaks only this one
            self._fail_unless_held(now, Protocol.NAT_PMP)
            return
        way = self._ways.get(Protocol.PCP)
        if way is None or way.stage in (Stage.FAILED, Stage.REMOVED):
            return
        if reply.answer is Answer.PCP_MAPPING and reply.nonce and (reply.nonce, reply.internal_port) != (self._nonce, self._port):
            self.drops["port mapping answer for another"] += 1
            return
        self._note_epoch(now, way, reply.epoch)
        if reply.answer is Answer.PCP_ANNOUNCE:
            if way.stage is Stage.PROBING:  # also when it has no word for announcements
                way.move(now, Cue.ANSWERED)
        elif way.stage is Stage.REMOVING:
            way.move(now, Cue.GAVE_UP)
        elif way.stage in (Stage.MAPPING, Stage.RENEWING):
            if reply.result != pcp.SUCCESS:
                self._failed(
                    now, way, f"asked for a port by PCP, the router says that {pcp.PCP_RESULTS.get(reply.result, 'it failed')}"
                )
            else:
                external = Address(reply.external_host, reply.external_port)
                self._granted(now, way, external, Seconds(float(reply.lifetime)))

    def _on_nat_pmp(self, now: Instant, reply: Reply) -> None:
        if reply.result == pcp.UNSUPPORTED_VERSION:  # likewise: RFC 6887 appendix A
            self._fail_unless_held(now, Protocol.PCP)
            return
        way = self._ways.get(Protocol.NAT_PMP)
        if way is None or way.stage in (Stage.FAILED, Stage.REMOVED):
            return
        if reply.answer is Answer.NAT_PMP_MAPPING and reply.internal_port not in (self._port, 0):
            self.drops["port mapping answer for another"] += 1
            return
        self._note_epoch(now, way, reply.epoch)
        if way.stage is Stage.REMOVING:
            if reply.answer is Answer.NAT_PMP_MAPPING and not reply.lifetime:
                way.move(now, Cue.GAVE_UP)
        elif reply.result != pcp.SUCCESS:
            if way.stage is not Stage.HELD:
                self._failed(
                    now,
                    way,
                    f"asked for a port by NAT-PMP, the router says that {pcp.NAT_PMP_RESULTS.get(reply.result, 'it failed')}",
                )
        elif reply.answer is Answer.NAT_PMP_EXTERNAL:
            self._on_external(now, way, reply.external_host)
        elif way.stage in (Stage.MAPPING, Stage.RENEWING):
            external = Address(way.external_host, reply.external_port)
            self._granted(now, way, external, Seconds(float(reply.lifetime)))

    def _on_external(self, now: Instant, way: Way, host: str) -> None:
        way.external_host = host
        mapping = self.mapping
        if way.stage is Stage.PROBING:
            way.move(now, Cue.ANSWERED)
        elif mapping is not None and mapping.protocol is Protocol.NAT_PMP and mapping.external.host != host:
            way.move(now, Cue.FORGOTTEN)  # it has another address now: ask it to confirm the mapping there

    def _note_epoch(self, now: Instant, way: Way, epoch: int) -> None:
        if not way.is_epoch_sound(now, epoch):
            way.move(now, Cue.FORGOTTEN)

    def _granted(self, now: Instant, way: Way, external: Address, lifetime: Seconds) -> None:
        lifetime = min(lifetime, MAX_LIFETIME)
        if lifetime <= 0 or not is_allowed(external):
            if way.protocol is Protocol.PCP:
                self._useless.append(pcp.encode_pcp_map(self._own, self._nonce, self._port, None, 0))
            elif way.protocol is Protocol.NAT_PMP:
                self._useless.append(pcp.encode_nat_pmp_map(self._port, 0, 0))
            self._failed(now, way, f"the router granted a port at {external.host}, where nobody can reach it")
            return
        way.move(now, Cue.GRANTED)
        expires_at = Instant(now + lifetime)
        self.mapping = PortMapping(
            protocol=way.protocol, internal_port=self._port, external=external, lifetime=lifetime, expires_at=expires_at
        )
        self._wish = external.port
        if self._leaving is not None and self._leaving[0] == external.port:
            self._leaving = None
        self._upnp_ports_tried = 0
        self._retry_after = RETRY_AFTER
        half = lifetime * (0.5 + 0.125 * self._rng.random())  # RFC 6887 §11.2.1
        if way.protocol is Protocol.UPNP:
            half = min(half, UPNP_RENEWAL)
        else:
            way.watch_at = Instant(now + WATCH_INTERVAL)
        way.next_at = Instant(now + max(half, MIN_RENEWAL))

    def _failed(self, now: Instant, way: Way, why: str) -> None:
        """A request was refused or never answered."""
        mapping = self.mapping
        if way.stage is Stage.RENEWING and mapping is not None and now < mapping.expires_at:
            way.move(now, Cue.UNANSWERED)  # try again later, more often as the end of the lease comes near
            way.next_at = Instant(now + max(MIN_RENEWAL, (mapping.expires_at - now) / 2))
            return
        if way.stage is not Stage.PROBING:
            self.trouble = why
        if mapping is not None and mapping.protocol is way.protocol and not self._is_closed:
            self.mapping = None
        way.move(now, Cue.GAVE_UP)
        if not self._is_closed and all(each.stage is Stage.FAILED for each in self._ways.values()):
            self._retry_at = Instant(now + self._retry_after)
            self._retry_after = min(Seconds(self._retry_after * 2), MAX_RETRY_AFTER)

    def _fail_unless_held(self, now: Instant, protocol: Protocol) -> None:
        way = self._ways.get(protocol)
        if way is not None and way.stage in (Stage.PROBING, Stage.MAPPING):
            self._failed(now, way, f"the router does not speak {protocol.value}")

    def _restart(self, now: Instant) -> None:
        """Ask for everything once more."""
        self._retry_at = None
        self._upnp_ports_tried = 0
        self._begun = now
        for way in self._ways.values():
            way.move(now, Cue.AGAIN)

    def _choose(self, now: Instant) -> None:
        """Make the mapping by the best protocol that answered; a better one that is silent is waited for a moment only."""
        self._choose_at = None
        if self._is_closed or self.mapping is not None or any(way.stage is Stage.MAPPING for way in self._ways.values()):
            return
        for way in self._ways.values():
            if way.stage is Stage.READY:
                way.move(now, Cue.CHOSEN)
                return
            if way.stage is Stage.PROBING and now < self._begun + GRACE:
                self._choose_at = Instant(self._begun + GRACE)
                return
