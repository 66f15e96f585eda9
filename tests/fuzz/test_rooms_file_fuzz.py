"""Any content of a room's file is a room or BadContent."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.state.test_rooms import ROOM
from tunnel.state.documents import BadContent
from tunnel.state.rooms import SavedRoom, decode_room, encode_room

WHOLE = encode_room(ROOM)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 300),
        st.floats(allow_nan=False),
        st.text(max_size=50),
        st.sampled_from(list(WHOLE.values())),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=66), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*WHOLE, "more"]), values, max_size=4), st.sets(st.sampled_from(list(WHOLE)), max_size=2))
def test_any_content_is_a_room_or_refused(changes: dict[str, Any], missing: set[str]) -> None:
    content = {key: value for key, value in {**WHOLE, **changes}.items() if key not in missing}
    with contextlib.suppress(BadContent):
        room = decode_room(content)
        assert isinstance(room, SavedRoom)
        assert decode_room(encode_room(room)) == room
