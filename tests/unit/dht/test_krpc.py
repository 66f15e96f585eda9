from __future__ import annotations

import pytest

from tests.sim.dht import packed
from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.krpc import FIRST_BYTE, MAX_MESSAGE, NodeInfo, Question, Refusal, Reply, decode_message, encode_find_node
from tunnel.errors import MalformedPacket
from tunnel.units import Address

ID = b"abcdefghij0123456789"


def reply(**more: Value) -> dict[bytes, Value]:
    return {b"t": b"aa", b"y": b"r", b"r": {b"id": ID, **{key.encode(): value for key, value in more.items()}}}


def test_a_question_says_that_we_answer_none() -> None:
    text = encode_find_node(b"aa", ID, b"mnopqrstuvwxyz123456")
    assert text[0] == FIRST_BYTE
    assert decode_value(text) == {
        b"t": b"aa", b"y": b"q", b"q": b"find_node", b"ro": 1, b"a": {b"id": ID, b"target": b"mnopqrstuvwxyz123456"},
    }  # fmt: skip


def test_an_answer_tells_nodes_and_where_it_sees_us() -> None:
    one, other, we = Address("44.1.2.3", 6881), Address("3fff::1", 6882), Address("198.51.100.7", 1025)
    message = reply(nodes=ID + packed(one), nodes6=ID + packed(other)) | {b"ip": packed(we), b"v": b"LT\x01\x02"}
    found = decode_message(encode_value(message))
    assert found == Reply(transaction=b"aa", id=ID, nodes=(NodeInfo(ID, one), NodeInfo(ID, other)), sees_us_at=we)


def test_a_view_without_a_port_is_none() -> None:
    assert decode_message(encode_value(reply() | {b"ip": bytes(4)})) == Reply(transaction=b"aa", id=ID)


def test_refusals_and_questions_are_told_from_answers() -> None:
    refusal = {b"t": b"aa", b"y": b"e", b"e": [203, b"invalid token"]}
    assert decode_message(encode_value(refusal)) == Refusal(transaction=b"aa", code=203)  # type: ignore[arg-type]
    assert decode_message(encode_find_node(b"aa", ID, ID)) == Question()


@pytest.mark.parametrize(
    "message",
    [
        [], 7, b"d", {}, {b"y": b"r"}, {b"t": 7, b"y": b"r", b"r": {b"id": ID}}, {b"t": b"a", b"y": b"z"},
        {b"t": b"a", b"y": b"r", b"r": []}, {b"t": b"a", b"y": b"r", b"r": {b"id": ID[1:]}}, {b"t": b"a", b"y": b"e"},
        {b"t": b"a", b"y": b"e", b"e": []}, {b"t": b"a", b"y": b"e", b"e": [b"203"]}, reply(nodes=bytes(25)), reply(nodes=[]),
        reply(nodes6=bytes(26)),
    ],
)  # fmt: skip
def test_what_is_no_message_is_malformed(message: Value) -> None:
    with pytest.raises(MalformedPacket):
        decode_message(encode_value(message))


def test_a_huge_answer_is_not_looked_at() -> None:
    nodes = (ID + packed(Address("44.1.2.3", 6881))) * (MAX_MESSAGE // 26)
    huge = encode_value(reply(nodes=nodes))
    assert len(huge) > MAX_MESSAGE
    with pytest.raises(MalformedPacket):
        decode_message(huge)
