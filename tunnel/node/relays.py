"""The relays of one link: channels at the servers that are nearest to both sides, one of which stands by.

Both sides tell each other inside the connection which servers answer them and how soon.  A server is known by its instance, so
that each side may reach it by addresses of its own.  The initiator chooses the two with the smallest sums, draws a channel and a
token for each that has none yet, and tells the other side; both show the token to that server, which makes the channel (Restore).
Which of them carries is the transport's choice, as between any paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from tunnel.errors import MalformedPacket
from tunnel.rendezvous.events import ChannelMoved, RelayChannel, Told
from tunnel.rendezvous.messages import TOKEN_SIZE, Bye, Done, Gone, MoveOn, Rebind, Restore
from tunnel.transport.connection.events import PathKind
from tunnel.transport.connection.paths import is_nearer
from tunnel.units import CHANNEL_BYTE, CHANNEL_SIZE, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.node.peering import Peering
    from tunnel.rendezvous.client import Client
    from tunnel.transport.connection.connection import Connection

CONTROL_RELAYS: Final = 10  # first byte of the messages on the control stream
HAVE: Final = 0  # second byte: which servers answer the sender, and how soon
OPEN: Final = 1  # the initiator: show this token to that server
LET_GO: Final = 2  # neither side needs a channel for now: letting_go.py

STANDBY_AFTER: Final = Seconds(3.0)  # of a relayed link, before it is worth a second channel: most find a direct path by then
LOOK_INTERVAL: Final = Seconds(5.0)  # between two looks at what the servers of a relayed link take ...
REST_INTERVAL: Final = Seconds(30.0)  # ... and where there is one server, at whether there are more
OPEN_PATIENCE: Final = Seconds(10.0)  # for a channel to carry something, before it is given up
BARRED: Final = Seconds(60.0)  # for so long a server is not tried again where that came to nothing
WANTED: Final = 2  # channels of a relayed link: what carries, and what stands by
MAX_RELAYS: Final = 4  # of a link at a time: those, and as many that are to replace them
MAX_SAID: Final = 8  # servers in one message, the nearest of more
CLOCK: Final = 1e-4  # seconds; the unit of round trips on the wire
MAX_TICKS: Final = 0xFFFF
LISTENER_SIDE: Final = 0  # of a channel, as in a room: the responder's
DIALER_SIDE: Final = 1  # the initiator's, who pays

LET_GO_OF: Final = "the link is direct, and asks for a channel when it needs one"

_SERVER: Final = Struct(">QH")
_OPEN: Final = Struct(f">Q{CHANNEL_SIZE}s{TOKEN_SIZE}s")


def encode_have(servers: Mapping[int, float]) -> bytes:
    nearest = sorted(servers.items(), key=lambda item: item[1])[:MAX_SAID]
    ticks = ((instance, min(MAX_TICKS, round(trip / CLOCK))) for instance, trip in nearest)
    return bytes((CONTROL_RELAYS, HAVE)) + b"".join(_SERVER.pack(*each) for each in ticks)


def decode_have(body: bytes) -> dict[int, float]:
    """Raises MalformedPacket."""
    if len(body) % _SERVER.size or len(body) > MAX_SAID * _SERVER.size:
        raise MalformedPacket(f"{len(body)} bytes are no list of servers")
    return {instance: ticks * CLOCK for instance, ticks in _SERVER.iter_unpack(body)}


def choose(sums: Mapping[int, float], *kept: int | None) -> list[int]:
    """The two servers that a link should have: those it has, the one that carries first, unless others are much nearer."""
    chosen = [each for each in dict.fromkeys(kept) if each in sums and each is not None][:WANTED]
    for candidate in sorted(sums, key=lambda each: sums[each]):
        if candidate in chosen:
            continue
        if len(chosen) < WANTED:
            chosen.append(candidate)
            continue
        farthest = max(chosen, key=lambda each: sums[each])
        if is_nearer(sums[candidate], sums[farthest]):
            chosen[chosen.index(farthest)] = candidate
    return chosen


def _differs(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether that is worth telling."""
    return one.keys() != other.keys() or any(is_nearer(*sorted((one[each], other[each]))) for each in one)


class Relays:
    """Of one peering, for its connection of now."""

    def __init__(self, context: Context, peering: Peering) -> None:
        self._context = context
        self._peering = peering
        self._theirs: dict[int, float] | None = None  # None: the peer has said nothing, and may know nothing of this
        self._said: dict[int, float] | None = None
        self._until: dict[bytes, Instant] = {}  # channels that carry nothing yet, or no more, and when they are given up
        self._barred: dict[int, Instant] = {}
        self.due_at: Instant | None = None

    @property
    def _client(self) -> Client | None:
        return self._context.clients.get(self._peering.server or "")

    def attach(self, now: Instant) -> None:
        """A connection with the peer's new instance stands."""
        self._theirs = self._said = None
        self._until.clear()
        self._look_at(Instant(now + STANDBY_AFTER))

    def _look_at(self, at: Instant | None) -> None:
        self.due_at = at
        self._peering.touch()

    # --- inputs

    def handle(self, now: Instant, data: bytes) -> None:
        """A message of the peer, without its first byte."""
        try:
            kind, body = data[0], data[1:]
            if kind == HAVE:
                self._theirs = decode_have(body)
                self._look_soon(now)
            elif kind == OPEN and not self._peering.is_initiator and len(body) == _OPEN.size:
                self._on_open(now, *_OPEN.unpack(body))
            elif kind == LET_GO:
                self._peering.letting_go.handle(now, body)
            else:
                raise MalformedPacket("no message about relays")
        except (MalformedPacket, IndexError):
            self._context.drops["message about relays malformed"] += 1

    def _look_soon(self, now: Instant) -> None:
        if self.due_at is not None:  # else nothing is wanted of relays now
            self._look_at(now)

    def _on_open(self, now: Instant, instance: int, channel: bytes, token: bytes) -> None:
        client, connection = self._client, self._peering.connection
        if client is None or connection is None:
            return
        self._expire(now, connection, client)
        if channel[0] < CHANNEL_BYTE or len(connection.channels | self._until.keys()) >= MAX_RELAYS:
            self._context.drops["relay channel not wanted"] += 1
        elif client.open_channel(now, instance, channel, token, LISTENER_SIDE, self._peering):
            self._await(now, channel)

    def _await(self, now: Instant, channel: bytes) -> None:
        self._until.setdefault(channel, Instant(now + OPEN_PATIENCE))

    def _expire(self, now: Instant, connection: Connection, client: Client) -> None:
        """Channels that have not even come to be."""
        known = connection.channels
        for channel in [each for each, until in self._until.items() if now >= until and each not in known]:
            del self._until[channel]
            client.leave_channel(now, channel)

    def relayed(self, now: Instant) -> None:
        """The link goes through a server now."""
        if self.due_at is None:
            self._look_at(Instant(now + STANDBY_AFTER))

    def lost(self, now: Instant, key: PathKey) -> None:
        """A relayed path works no more: is its server still there?"""
        self._context.clients.doubt(now, self._peering.server or "", key)
        self._look_soon(now)

    def probed(self, now: Instant, key: PathKey) -> None:
        """The peer comes over a channel that is no path yet: if it is ours, it may become one."""
        client, connection = self._client, self._peering.connection
        if client is None or connection is None or key.prefix in self._until or not client.holds(key):
            return  # in _until: Done will say that the server has it
        if len(connection.channels | self._until.keys()) >= MAX_RELAYS:
            self._context.drops["relay channel not wanted"] += 1
            return
        client.follow(key.prefix, self._peering)
        connection.expect_relay(now, key)

    def hear(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        """A relay channel of the connection has moved, has come to be, ends or is gone."""
        peering = self._peering
        connection = peering.connection
        if connection is None or peering.is_closed:
            return
        match event:
            case ChannelMoved(old=old, new=new) if connection.knows_path(old.path_key):
                if self._has_another(connection, old.path_key):
                    client.leave_channel(now, new.channel)  # the path goes later: what is under way there may still arrive
                else:
                    connection.add_relay(now, new.path_key, instead_of=old.path_key)
            case Told(Gone(), channel=RelayChannel(path_key=key)) if connection.knows_path(key):
                connection.drop_path(now, key)
                self._until.pop(key.prefix, None)
                connection.verify_paths(now)  # the peer may have been killed, of which the server has heard first
                self._look_soon(now)
                peering.drain(now)
            case Told(Done(), Restore(), channel=RelayChannel(path_key=key)):
                connection.expect_relay(now, key)
            case Told(Done(), Rebind(), channel=RelayChannel(path_key=key)) if not connection.is_path(key):
                connection.verify_path(now, key)  # the server may have forgotten it, and the peer have come first
            case Told(Bye() | MoveOn(), channel=RelayChannel(path_key=key)):
                connection.leave_path(now, key)
                self._look_soon(now)
            case _:
                pass

    def _has_another(self, connection: Connection, key: PathKey) -> bool:
        """Whether a channel besides that one carries, of a peer that keeps such: it would not follow this one elsewhere."""
        return self._theirs is not None and any(works for each, works in connection.relay_paths.items() if each != key)

    def _give_back(self, now: Instant, connection: Connection, client: Client, key: PathKey) -> None:
        self._until.pop(key.prefix, None)
        client.leave_channel(now, key.prefix)
        connection.drop_path(now, key)

    # --- time

    def handle_timeout(self, now: Instant) -> None:
        if self.due_at is not None and now >= self.due_at:
            self._look(now)

    def _look(self, now: Instant) -> None:
        peering, client = self._peering, self._client
        connection = peering.connection
        is_over = connection is None or client is None or peering.is_closed
        if is_over or connection is None or client is None or connection.current_path.kind is PathKind.DIRECT:
            self._look_at(None)
            return
        ours = client.relays(now)
        self._look_at(Instant(now + (LOOK_INTERVAL if len(ours) > 1 else REST_INTERVAL)))
        if self._said is None or _differs(ours, self._said):
            self._said = dict(ours)
            connection.send_control(encode_have(ours))
        self._barred = {instance: until for instance, until in self._barred.items() if until > now}
        if self._theirs is None:  # of a version that keeps one channel, and moves it where its client goes
            return
        by_members = self._context.carrying.names  # their channels are no server's
        paths = {key: works for key, works in connection.relay_paths.items() if key.prefix not in by_members}
        self._expire(now, connection, client)
        self._tidy(now, connection, client, paths)
        if peering.is_initiator:
            theirs = self._theirs
            self._plan(now, connection, client, paths, {each: ours[each] + theirs[each] for each in ours if each in theirs})

    def _tidy(self, now: Instant, connection: Connection, client: Client, paths: dict[PathKey, bool]) -> None:
        """Give back what has carried nothing for a while, where something else does."""
        for key, works in list(paths.items()):
            if works:
                self._until.pop(key.prefix, None)
                continue
            self._await(now, key.prefix)
            if now >= self._until[key.prefix] and key != connection.current_path.key and any(paths.values()):
                instance = client.instance_at(key)
                if instance is not None:
                    self._barred[instance] = Instant(now + BARRED)
                self._give_back(now, connection, client, key)
                del paths[key]

    def _plan(
        self, now: Instant, connection: Connection, client: Client, paths: dict[PathKey, bool], sums: dict[int, float]
    ) -> None:  # fmt: skip
        """Open what is wanted and not there; give back what is not wanted, once that works."""
        current = connection.current_path.key
        at: dict[int | None, list[PathKey]] = {}
        for key in sorted(paths, key=lambda key: (key != current, not paths[key])):
            at.setdefault(client.instance_at(key), []).append(key)
        working = [instance for instance, keys in at.items() if paths[keys[0]]]
        wanted = choose(sums, client.instance_at(current), *working)
        for instance in wanted:
            if instance not in at and instance not in self._barred and len(paths) < MAX_RELAYS:
                self._open(now, connection, client, instance)
        if not all(instance in working for instance in wanted):
            return
        for where, keys in at.items():
            for key in keys[1:] if where in wanted else keys:
                if key != current:
                    self._give_back(now, connection, client, key)

    def _open(self, now: Instant, connection: Connection, client: Client, instance: int) -> None:
        entropy = self._context.entropy
        drawn = entropy(CHANNEL_SIZE)
        channel, token = bytes((drawn[0] | CHANNEL_BYTE,)) + drawn[1:], entropy(TOKEN_SIZE)
        if client.open_channel(now, instance, channel, token, DIALER_SIDE, self._peering):
            self._await(now, channel)
            self._barred[instance] = Instant(now + OPEN_PATIENCE)  # not twice
            connection.send_control(bytes((CONTROL_RELAYS, OPEN)) + _OPEN.pack(instance, channel, token))

    # --- for people

    def describe(self, now: Instant) -> list[dict[str, Any]]:
        """The servers that this link could go by, and what each is to it, the one that carries first; for `status`."""
        client, connection = self._client, self._peering.connection
        if client is None or connection is None:
            return []
        current, paths = connection.current_path.key, connection.relay_paths
        ours, theirs = client.relays(now), self._theirs
        at: dict[int | None, list[PathKey]] = {}
        for key in paths:
            at.setdefault(client.instance_at(key), []).append(key)
        sums = {each: ours[each] + theirs[each] for each in ours if each in theirs} if theirs is not None else {}
        lets_go = self._peering.letting_go.has_let_go
        shown: list[dict[str, Any]] = []
        for instance in dict.fromkeys([*at, *ours]):
            keys = at.get(instance, [])
            role = "carries" if current in keys else "stands_by" if any(paths[key] for key in keys) else "idle"
            address = keys[0].remote if keys else client.address_of(instance) if instance is not None else None
            trip, their_trip = (None if each is None or instance is None else each.get(instance) for each in (ours, theirs))
            shown.append({
                "server": str(address),
                "role": role,
                "rtt_s": trip,
                "peer_rtt_s": their_trip,
                "why": LET_GO_OF if lets_go else _why(role, instance, sums, knows=theirs is not None),
            })  # fmt: skip
        order = ("carries", "stands_by", "idle")
        shown.sort(key=lambda each: (order.index(each["role"]), each["rtt_s"] is None, each["rtt_s"]))
        return shown


def _why(role: str, instance: int | None, sums: Mapping[int, float], *, knows: bool) -> str:
    """One clause for a person about what a server is to a link."""
    if not knows:
        return "the other side has not said which servers it reaches"
    if instance not in sums or instance is None:
        return "both met there" if role == "carries" else "the other side does not reach it"
    if len(sums) == 1:
        return "the only one that both sides reach"
    if min(sums, key=lambda each: sums[each]) == instance:
        return "the nearest to both sides"
    if role == "idle":
        return "farther from both sides"
    return "no other is so much nearer to both sides that a change is worth it"
