"""Any bytes to the decoders of a room: a value or MalformedPacket.  Anything from a member: no roster counts but signed ones."""

from __future__ import annotations

import contextlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.test_rendezvous_decoders import msgpackish
from tests.unit.room.test_room import T0, a_creator, deliver, joined
from tunnel.errors import MalformedPacket
from tunnel.room.core import messages
from tunnel.room.core.messages import Have, Hello, Leave, Refused, State, Told
from tunnel.room.core.roster import SIGNATURE_SIZE, decode_roster, is_signed
from tunnel.units import Instant

tagged = st.tuples(st.integers(0, 9), st.lists(msgpackish, max_size=6)).map(
    lambda pair: bytes((0x90 | (len(pair[1]) + 1), pair[0])) + b"".join(pair[1])
)
bodies = st.one_of(st.binary(max_size=200), tagged)


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """The same with some bytes changed, cut or added."""
    changes = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)

    def apply(changed: list[tuple[int, int]], cut: int, tail: bytes) -> bytes:
        out = bytearray(data)
        for position, value in changed:
            out[position] = value
        return bytes(out[: len(out) - cut]) + tail

    return st.builds(apply, changes, st.integers(0, 5), st.binary(max_size=5))


CREATOR = a_creator()
MEMBERS = [joined(CREATOR, name) for name in ("ben", "cleo")]
deliver(T0, CREATOR, *MEMBERS)
STATE = CREATOR.state()


@settings(max_examples=400, deadline=None)
@given(st.one_of(bodies, mutated(STATE.roster), bodies.map(lambda body: bytes(SIGNATURE_SIZE) + body)))
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    for buffer in (data, memoryview(data)):
        with contextlib.suppress(MalformedPacket):
            messages.decode_message(buffer)
        with contextlib.suppress(MalformedPacket):
            decode_roster(buffer)
        is_signed(buffer, STATE.room)


wellformed = st.one_of(
    st.builds(
        Hello, st.sampled_from([b"", STATE.room, bytes(32)]), st.integers(0, 2**48 - 1), st.text(max_size=64), st.booleans()
    ),
    st.builds(State, st.one_of(mutated(STATE.roster), st.just(STATE.roster)), st.sampled_from([STATE.secret, bytes(32)])),
    st.builds(Have, st.integers(0, 2**48 - 1)),
    st.builds(Told, st.lists(st.binary(min_size=5, max_size=5), max_size=64).map(tuple)),
    st.builds(Refused, st.integers(0, 255)),
    st.just(Leave()),
).map(messages.encode)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.one_of(bodies, wellformed)), max_size=30), st.integers(0, 2**32))
def test_members_say_anything_and_the_room_stays_a_room(said: list[tuple[bool, bytes]], seed: int) -> None:
    rng = random.Random(seed)
    creator = a_creator()
    ben, cleo = joined(creator, "ben"), joined(creator, "cleo")
    deliver(T0, creator, ben, cleo)
    now = T0
    ben.connected(now, cleo.static)
    for to_creator, body in said:
        now = Instant(now + rng.random() * 5)
        victim = creator if to_creator else ben
        victim.handle_message(now, cleo.static, body)
        victim.handle_timeout(now)
        assert victim.roster is not None
        state = victim.state()
        assert is_signed(state.roster, CREATOR.state().room)
        assert victim.me is not None
        assert ben.me is not None
        assert {peer.static for peer in ben.peers()} | {ben.static} == {member.static for member in ben.roster.members}  # type: ignore[union-attr]
        while victim.poll_message() is not None:
            pass
        while victim.poll_event() is not None:
            pass
    assert not ben.is_over
    assert not creator.is_over
    assert ben.roster is not None
    assert ben.roster.named("ben") is not None
    assert creator.roster is not None
    assert creator.roster.named("ben") is not None
