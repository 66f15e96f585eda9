"""Introduces the rendezvous server to the STUN codec: the two rooms do not know each other."""

from __future__ import annotations

from tunnel.nat import stun
from tunnel.rendezvous.stun import StunQuestion
from tunnel.units import Address, Buffer


class ServerStun:
    """A StunCodec for tunnel.rendezvous.server.Server."""

    def read(self, datagram: Buffer) -> StunQuestion | None:
        """Raises MalformedPacket."""
        message = stun.decode(datagram)
        if message.type != stun.BINDING_REQUEST:
            return None
        change_address, change_port = message.change_request
        wants_origin = message.is_rfc3489 or stun.CHANGE_REQUEST in message.attributes or stun.PADDING in message.attributes
        return StunQuestion(message, change_address, change_port, wants_origin)

    def answer(self, question: StunQuestion, mapped: Address, origin: Address | None, other: Address | None) -> bytes:
        request = question.request
        assert isinstance(request, stun.StunMessage)
        if request.unknown_required and not request.is_rfc3489:
            return stun.encode_binding_error(request, 420, "Unknown Attribute")
        return stun.encode_binding_response(request, mapped, other_address=other, response_origin=origin)
