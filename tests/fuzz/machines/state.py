"""Files of PTUNNEL_HOME: what somebody else, an older version or a bad disk may have left there, and who reads it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec

from tests.fuzz.engine import Machine
from tests.unit.state.test_rooms import ROOM
from tunnel.cli import peers as listing
from tunnel.control.messages import encode_line
from tunnel.errors import ConfigurationError, MalformedPacket, StateError
from tunnel.pairing.grants import GrantSet
from tunnel.room.core.roster import decode_roster
from tunnel.setup.store import known_peer
from tunnel.state import documents, peers, rooms, ways
from tunnel.state.documents import BadContent
from tunnel.state.peers import Peer
from tunnel.state.ways import Way

GRANTS = GrantSet.parse("22", "53/udp", "5000-5010", "nas=192.168.1.5:445").to_dicts()
PEERS = peers.encode_peers(
    [
        Peer(name="home", static=b"a" * 32, psk=b"b" * 32, server="rv.example.net:24531", grants=GRANTS, last_seen=1.7e9),
        Peer(name="ben", static=b"c" * 32, psk=b"d" * 32),
    ]
)
WAYS = ways.encode_ways(
    [
        Way(
            network=b"n" * 16, static=b"a" * 32, host="44.1.2.3", port=4_000, kind=2, technique="birthday", opened=True,
            keepalive=20.0, used=1.7e9,
        )
    ]
)  # fmt: skip
CONTENTS: list[Any] = [PEERS, WAYS, rooms.encode_room(ROOM)]


def _peers(content: Any) -> None:
    found = peers.decode_peers(content)
    assert peers.decode_peers(json.loads(json.dumps(peers.encode_peers(found)))) == found
    for peer in found:
        known = known_peer(peer)
        with contextlib.suppress(StateError):
            granted = GrantSet.from_dicts(known.grants)
            granted.allows("tcp", 22)
            assert GrantSet.from_dicts(granted.to_dicts()) == granted
            encode_line(listing._describe(peer))
        listing._ago(peer.last_seen)


def _ways(content: Any) -> None:
    found = ways.decode_ways(content)
    ways.merge(found, found, [(each.network, each.static) for each in found[:1]])


def _room(content: Any) -> None:
    found = rooms.decode_room(content)
    with contextlib.suppress(MalformedPacket):
        decode_roster(found.roster)


DECODERS = (_peers, _ways, _room)
KINDS = ("peers", "ways", "room")


class _State:
    """Inputs: which file, and its bytes; even ones have their checksum made right again."""

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        which, rest = data[0] % len(KINDS), data[1:]
        with contextlib.suppress(BadContent, ConfigurationError):
            if data[0] & 8:
                try:
                    content = documents._decode(rest, KINDS[which], 1)
                except (ValueError, RecursionError, OverflowError, documents._TooNew):
                    return
            else:
                try:
                    content = msgspec.json.decode(rest)
                except (ValueError, RecursionError, msgspec.DecodeError):
                    return
                if not isinstance(content, dict):
                    return
            DECODERS[which](content)

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    found = []
    for number, content in enumerate(CONTENTS):
        plain = json.loads(json.dumps(content))
        whole = {
            "ptunnel": KINDS[number], "version": 1, "checksum": documents._checksum(KINDS[number], 1, plain), "content": plain,
        }  # fmt: skip
        found += [bytes((number,)) + json.dumps(plain).encode()] * 3 + [bytes((24 + number,)) + json.dumps(whole).encode()]
        for value in ("1e400", "-1", "null", '"\\ud800"', "[]", "{}", "9" * 400, "true", "1e15", '"' + "x" * 200 + '"'):
            for key in [*plain, *(plain.get("peers") or plain.get("ways") or [{}])[0]]:
                text = json.dumps(plain)
                at = text.find(f'"{key}": ')
                if at >= 0:
                    at += len(key) + 4
                    found.append(
                        bytes((number,)) + (text[:at] + value + text[text.index(",", at) if "," in text[at:] else at :]).encode()
                    )
    return found


MACHINES = [Machine("state", corpus, lambda _seed: _State(), length=1_000)]
