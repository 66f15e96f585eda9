"""The first meeting, by a code: the connector's flow.  See expose_code.py for the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.node.context import Context
from tunnel.node.events import Problem, Troubled
from tunnel.node.flow import Flow
from tunnel.node.flows.expose_code import ANSWER_TIMEOUT, POST_ANSWER, POST_BUSY, POST_FAILURE, Adopt, server_says
from tunnel.node.handshakes import InitiatorHandshake
from tunnel.pairing.code import Code, Purpose
from tunnel.pairing.pake import CONFIRMATION_SIZE, Pake
from tunnel.rendezvous.events import NO_PATH, ChannelMoved, RelayChannel, Told
from tunnel.rendezvous.messages import Claim, ClaimAccepted, Gone, GoneKind, Posted, RefusalCode, Refused
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto.handshake import Initiator, Pattern, xx_prologue
from tunnel.units import Buffer, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.peering import Peering
    from tunnel.rendezvous.client import Client

MAX_EARLY: Final = 4  # posts kept until we know which mailbox is ours
CLAIM_AGAIN: Final = Seconds(1.0)  # after "busy"; up to twice as long, so that those who wait do not come together again
BUSY_PATIENCE: Final = Seconds(120.0)  # of being told so

#: What came of a code, by what it is for: one for many goes on working.
_WRONG: Final = {
    Purpose.PORTS: "The code was wrong: it is used up now. Ask for a fresh one.",
    Purpose.ROOM: "The code was wrong. Check it with whoever opened the room: it still works, until five wrong ones were tried.",
}
_UNANSWERED: Final = {
    Purpose.PORTS: "The other side did not answer; the code is used up: ask for a fresh one.",
    Purpose.ROOM: "Whoever opened the room did not answer; the code still works: try it again.",
}
_FAULT: Final = {
    Purpose.PORTS: "A fault in ptunnel ended the pairing; the code is used up: ask for a fresh one.",
    Purpose.ROOM: "A fault in ptunnel ended the pairing; the code still works: try it again.",
}
_SPENT: Final = {
    Purpose.PORTS: "This code was used before: each works once, so ask for a fresh one.",
    Purpose.ROOM: "This code was used too often: ask whoever opened the room for a fresh one.",
}
OTHER_PURPOSE: Final = "The other side offers something else by that code: ask what it is for."
_REFUSALS: Final[dict[int, tuple[Problem, str]]] = {
    RefusalCode.UNKNOWN_NAMEPLATE: (
        Problem.CODE_UNKNOWN,
        "Nobody waits under this code: check it, or ask for a fresh one, as codes expire.",
    ),
    RefusalCode.WRONG_SERVER: (
        Problem.CODE_UNKNOWN,
        "No server that was reached gives such codes: check the code, and that both sides name the same server.",
    ),
    RefusalCode.LOCKED_OUT: (Problem.CODE_UNKNOWN, "Too many unknown codes came from this address: wait a few minutes."),
}


class ConnectorPairing(Flow):
    """Turns a code into a connection, or into one final sentence."""

    place = "pairing"
    fate = "ended an attempt to pair"

    def __init__(
        self, context: Context, client: Client, code: Code, *, adopt: Adopt, now: Instant, purpose: Purpose = Purpose.PORTS
    ) -> None:
        super().__init__(context)
        self.handshake: InitiatorHandshake | None = None
        self.peering: Peering | None = None  # what came of it
        self.failure: Troubled | None = None  # why nothing did
        self._client = client
        self._code = code
        self._purpose = purpose
        self._adopt = adopt
        self._pake = Pake("B", code, context.entropy)
        self._mailbox: bytes | None = None
        self._early: list[Posted] = []  # what overtook the answer to our claim
        self._channel: RelayChannel | None = None
        self._instance = context.new_instance()
        self._deadline: Instant | None = None
        self._again_at: Instant | None = None  # when to claim once more, since the exposer was busy
        self._patient_until = Instant(now + BUSY_PATIENCE)
        client.claim(now, code.nameplate, self._pake.message, self)

    def close(self, now: Instant) -> None:
        self.is_done = True
        if self.handshake is not None:
            self._context.demux.handshakes.pop(self.handshake.index, None)

    def fail(self, now: Instant) -> None:
        """A fault of ours has met this attempt."""
        self._fail(now, Problem.INTERNAL, _FAULT[self._purpose])

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        if self.is_done or (self.handshake is not None and self.handshake.completed is not None):
            return
        match event:
            case Told(ClaimAccepted(mailbox=mailbox), channel=channel) if self._again_at is None:
                self._mailbox, self._channel = mailbox, channel
                self._deadline = Instant(now + ANSWER_TIMEOUT)
                early, self._early = self._early, []
                for post in early:
                    if post.mailbox == mailbox:
                        self._on_post(now, post.body)
            case Told(Posted(mailbox=mailbox, body=body) as posted):
                if mailbox == self._mailbox:
                    self._on_post(now, body)
                elif self._mailbox is None and len(self._early) < MAX_EARLY:
                    self._early.append(posted)
            case Told(Refused(code=code, text=text), Claim()):
                problem, sentence = _REFUSALS.get(int(code), (Problem.SERVER_REFUSED, server_says(text)))
                if code == NO_PATH:
                    problem, sentence = Problem.NO_DIRECT, text
                if code == RefusalCode.SPENT:
                    problem, sentence = Problem.CODE_SPENT, _SPENT[self._purpose]
                self._fail(now, problem, sentence)
            case Told(Gone(kind=GoneKind.MAILBOX, identifier=mailbox)) if mailbox == self._mailbox:
                self._fail(now, Problem.PEER_LOST, "The other side has left: ask for a fresh code.")
            case ChannelMoved(old=old, new=new) if old == self._channel:
                self._channel = new
                if self.handshake is not None:
                    self.handshake.move(now, new.path_key)
            case _:
                pass

    def on_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        handshake = self.handshake
        if handshake is None:
            return
        completed = handshake.handle_datagram(now, datagram)
        if completed is not None:
            if completed.params.purpose not in (0, self._purpose.value):  # 0: an older one, which did not say
                if self._mailbox is not None:
                    self._client.post(now, self._mailbox, bytes((POST_FAILURE,)))
                self._fail(now, Problem.WRONG_CODE, OTHER_PURPOSE)
                return
            self._deadline = Instant(now + ANSWER_TIMEOUT)  # until the other side has confirmed it: our finish may come too late
            finish = handshake.poll_transmit(now)
            if finish is not None:
                self._context.send(path, finish)  # before anything under the new keys
            self.peering = self._adopt(now, completed, handshake.proven(path), self._instance, True)
            if self.peering is None:
                self.close(now)

    def on_time(self, now: Instant) -> None:
        if self.peering is not None and (self.peering.is_closed or self.peering.is_confirmed):
            self.close(now)
        if self.is_done:
            return
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._pake = Pake("B", self._code, self._context.entropy)
            self._client.claim(now, self._code.nameplate, self._pake.message, self)
        if self._deadline is not None and now >= self._deadline:
            self._fail(now, Problem.CODE_UNANSWERED, _UNANSWERED[self._purpose])
            if self.peering is not None:  # whoever never confirmed the pairing is not remembered for it
                self._context.unremember(self.peering.peer)
                self.peering.close(now, CloseCode.NO_ERROR, "pairing took too long")
        elif self.handshake is not None:
            datagram = self.handshake.poll_transmit(now)
            if datagram is not None:
                self._context.send(self.handshake.path, datagram)

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        return earliest(self._deadline, self._again_at, self.handshake.poll_timeout() if self.handshake else None)

    def _on_post(self, now: Instant, body: bytes) -> None:
        if body[:1] == bytes((POST_FAILURE,)):
            self._fail(now, Problem.WRONG_CODE, _WRONG[self._purpose])
            return
        if body[:1] == bytes((POST_BUSY,)) and self.handshake is None and self._mailbox is not None:
            self._wait(now, self._mailbox)
            return
        if body[:1] != bytes((POST_ANSWER,)) or self.handshake is not None or self._channel is None or self._mailbox is None:
            return
        message, confirmation = body[1:-CONFIRMATION_SIZE], body[-CONFIRMATION_SIZE:]
        try:
            psk = self._pake.finish(message)
            is_right = self._pake.verify_confirmation(confirmation)
        except MalformedPacket:
            is_right = False
        if not is_right:
            self._client.post(now, self._mailbox, bytes((POST_FAILURE,)))
            self._fail(now, Problem.WRONG_CODE, _WRONG[self._purpose])
            return
        context = self._context
        initiator = Initiator(
            Pattern.XX,
            static=context.static,
            remote_static=None,
            psk=psk,
            prologue=xx_prologue(self._code.nameplate, message, self._pake.message),
            index=context.demux.new_index(),
            params=context.params(self._instance, purpose=self._purpose),
            entropy=context.entropy,
        )
        self._deadline = Instant(now + ANSWER_TIMEOUT)
        self.handshake = InitiatorHandshake(context, initiator, self._channel.path_key, now)
        context.demux.handshakes[initiator.index] = self

    def _wait(self, now: Instant, mailbox: bytes) -> None:
        """Others are trying the code, as many as may at once: come back in a moment, with a PAKE of its own."""
        self._client.leave_mailbox(now, mailbox)
        if self._channel is not None:
            self._client.leave_channel(now, self._channel.channel)
        self._mailbox = self._channel = self._deadline = None
        if now >= self._patient_until:
            self._fail(now, Problem.CODE_UNANSWERED, "Too many others are trying this code: wait a while, and use it again.")
            return
        self._again_at = Instant(now + CLAIM_AGAIN * (1.0 + self._context.rng.random()))

    def _fail(self, now: Instant, problem: Problem, text: str) -> None:
        self.close(now)
        self.failure = Troubled(problem=problem, text=text, is_final=True)
        self._context.emit(self.failure)
