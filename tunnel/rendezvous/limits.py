"""Every limit of the rendezvous server: its unit, its value and why it is there.  All state of a server is bounded by these."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from tunnel.errors import ConfigurationError
from tunnel.rendezvous.access import AccessList
from tunnel.units import Seconds

GIBIBYTE = 1 << 30
NUMBERS: Final = frozenset({"int", "float", "Seconds"})  # types of limits
HIGHEST: Final = 1 << 53  # of any limit; floats are exact up to there


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The settings of a server that its operator may change.

    "Per address" means per IPv4 address or IPv6 /64; each wider prefix around it gets GROWTH times as much (core/prefixes.py).
    """

    # what it offers
    open_directory: bool = False  # answer the plain-text `ip ver` protocol
    access: AccessList = field(default_factory=AccessList)  # who may use the server; empty: everybody
    own_hosts: Container[str] | None = None  # if set, only these hosts may allocate codes and listen (the embedded server)
    has_guests: bool = False  # whoever was led to one of those hosts may wait here too (a room's embedded server)
    software: str = "ptunnel"  # told in Welcome

    # registrations: soft state, gone when its owner falls silent
    session_lifetime: Seconds = field(default=Seconds(90.0))  # a dozen refreshes of 7 s may be lost
    max_sessions: int = 32_768  # sessions; some 3.6 KB each with three rooms
    sessions_per_address: int = 256  # sessions; a large carrier's NAT has many homes behind one address
    rooms_per_session: int = 1024  # rooms; 341 remembered peers of three days each
    rooms_per_address: int = 8_192  # registrations in rooms; 42 exposers of the most peers, so one address leaves room for others
    max_room_entries: int = 200_000  # registrations in rooms, over all sessions; some 300 bytes each
    listeners_per_room: int = 4  # a room is one pair's; two exposers of one home, plus a former self not yet expired
    dialers_per_room: int = 16  # connects of one pair at once (ssh ProxyCommand, scp, ...)
    requests_per_second: float = 100.0  # per address, proven; 256 clients at rest make 37
    request_burst: int = 500  # requests; a large exposer registers again after a restart

    # codes
    nameplate_lifetime: Seconds = field(default=Seconds(600.0))  # what people are told: ten minutes
    max_nameplates: int = 16_384  # nameplates
    nameplates_per_address: int = 64  # nameplates
    first_nameplate_digits: int = 3
    nameplate_density: float = 0.1  # of a digit count's numbers in use, before codes grow by a digit: guesses stay wrong
    wrong_claims: int = 5  # claims on (and wishes for) codes that are not there, before their address is locked out
    wrong_claim_refill: Seconds = field(default=Seconds(60.0))  # one more wrong claim is forgiven after this long
    claims_at_once: int = 16  # mailboxes open at a time for one nameplate that many may claim
    claims_at_once_per_address: int = 4  # of those, from one address: nobody keeps the others out
    claim_rate: float = 0.2  # claims a second from one address, right or wrong: knowing numbers is no way to use many up
    claim_burst: int = 16  # claims in a row; a room of friends behind one router
    lockout: Seconds = field(default=Seconds(120.0))  # no claims from that address for so long
    max_lockouts: int = 65_536  # addresses remembered as guessers (proven ones, so each costs its owner an address)
    max_mailboxes: int = 8_192  # mailboxes
    mailboxes_per_address: int = 128  # mailboxes opened from there
    mailbox_lifetime: Seconds = field(default=Seconds(120.0))  # a pairing takes seconds
    posts_per_mailbox: int = 16  # posts; a pairing takes two
    pushes_per_session: int = 64  # pushes not yet acknowledged
    push_lifetime: Seconds = field(default=Seconds(10.0))  # after that the receiver counts as gone

    # relay: on by default, so that a public server is no free ride
    max_channels: int = 16_384  # channels; some 700 bytes each
    channels_per_address: int = 256  # channels that were asked for there, by dialing or claiming
    channels_per_room: int = 16  # channels; a room is one pair's, and so many may dial in it at once
    channel_unused: Seconds = field(default=Seconds(60.0))  # without a word of the listener, before its dialer may replace it
    restore_patience: Seconds = field(default=Seconds(60.0))  # for the other side of a channel that one has restored
    channel_idle: Seconds = field(default=Seconds(180.0))  # two session lifetimes without a sign of one side
    pair_bytes: int = 64 * GIBIBYTE  # bytes a pair of addresses may relay at a stretch ...
    pair_bytes_period: Seconds = field(default=Seconds(86_400.0))  # ... and gets back evenly over this long
    pair_rate: float = 2_500_000.0  # bytes a second that a pair may always relay, also while more comes than can be read; and ...
    pair_bursts: float = 2_000.0  # ... bursts a second: a datagram that comes alone is one, and takes two kernel calls
    max_pairs: int = 65_536  # pairs of addresses whose bytes are counted
    pairs_per_address: int = 1_024  # of those, that began with a channel asked for there

    # answers to the unproven that are longer than the question: rare, per address and over all
    stun_rate: float = 1.0  # answers a second per address
    stun_burst: int = 10  # answers; behaviour discovery asks some eight questions in a row
    directory_rate: float = 1.0  # answers a second per address
    directory_burst: int = 5  # answers
    hint_rate: float = 5.0  # hints a second about one unknown channel to one sender (never longer than the datagram itself)
    hint_burst: int = 10  # hints
    unproven_rate: float = 2000.0  # such answers a second over all addresses
    directory_lifetime: Seconds = field(default=Seconds(600.0))  # "lately": a lesson with hand-typed commands
    directory_entries: int = 256  # clients; about fifty fit into an answer


#: The settings that are numbers, each with its type; the others have flags of their own.
LIMITS: Final = {each.name: int if each.type == "int" else float for each in fields(ServerConfig) if each.type in NUMBERS}


def with_limits(config: ServerConfig, said: Mapping[str, object], place: str) -> ServerConfig:
    """The same with other limits.  Raises ConfigurationError, naming `place` where they were said."""
    found: dict[str, int | float] = {}
    for name, value in said.items():
        kind = LIMITS.get(name)
        if kind is None:
            raise ConfigurationError(f"{place}: there is no limit {name[:40]!r}; docs/server.md says which there are.")
        is_number = isinstance(value, int) or (kind is float and isinstance(value, float))
        if isinstance(value, bool) or not is_number or not 0 < value <= HIGHEST:  # type: ignore[operator]
            whole = "a whole number" if kind is int else "a number"
            raise ConfigurationError(f"{place}: {name} must be {whole} above 0, not {str(value)[:40]!r}.")
        found[name] = kind(value)  # type: ignore[arg-type,call-overload]
    return replace(config, **found)  # type: ignore[arg-type]
