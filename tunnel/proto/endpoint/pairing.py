"""The first meeting, by a code: the exposer's flow and the connector's.  DESIGN: the exposer, never the server, counts guesses.

    exposer                        server                          connector
    allocate                     → nameplate
    code = nameplate-word-word   ~ told by voice ~                 code
                                   claim, PAKE message           ← claim
    POST_ANSWER, PAKE message    → mailbox                       → finishes the PAKE: right code or wrong one
    ↔ Noise XXpsk0 over the relay channel of the claim, the connector begins

Answering a claim spends the code, whatever follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tunnel.errors import MalformedPacket
from tunnel.proto.connection.handshakes import Completed, Initiator, InitiatorHandshake, Pattern, XxResponder, xx_prologue
from tunnel.proto.endpoint.context import Context
from tunnel.proto.endpoint.events import CodeIssued, Problem, Troubled
from tunnel.proto.pairing.code import Code, make_code, parse_code
from tunnel.proto.pairing.pake import CONFIRMATION_SIZE, Pake
from tunnel.proto.rendezvous import events as told
from tunnel.proto.rendezvous.messages import RefusalCode
from tunnel.proto.timers import earliest
from tunnel.units import Buffer, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.proto.endpoint.peering import Peering
    from tunnel.proto.rendezvous.client import Client

CODE_LIFETIME: Final = Seconds(600.0)  # as people are told
SHORTEST_LIFETIME: Final = Seconds(60.0)  # whatever the server says
ASK_SPACING: Final = Seconds(1.0)  # between two codes: a server that loses each at once must not flood the screen
CODE_WORDS: Final = 2
ANSWER_TIMEOUT: Final = Seconds(15.0)  # of silence after a spent code, on either side
PATIENT_FAILURES: Final = 3  # wrong guesses in a row before a fresh code has to wait: nobody may guess at network speed
FIRST_DELAY: Final = Seconds(5.0)
LONGEST_DELAY: Final = Seconds(600.0)

MAX_EARLY: Final = 4  # posts kept until we know which mailbox is ours

POST_ANSWER: Final = 1  # first byte of a mailbox body: PAKE message and confirmation follow
POST_FAILURE: Final = 2  # the codes differ

WRONG_CODE: Final = "The code was wrong: it is used up now."
_REFUSALS: Final[dict[int, tuple[Problem, str]]] = {
    RefusalCode.UNKNOWN_NAMEPLATE: (
        Problem.CODE_UNKNOWN,
        "Nobody waits under this code: check it, or ask for a fresh one (a code lives 10 minutes).",
    ),
    RefusalCode.SPENT: (Problem.CODE_SPENT, "This code was used before: each works once, so ask for a fresh one."),
    RefusalCode.LOCKED_OUT: (Problem.CODE_UNKNOWN, "Too many unknown codes came from this address: wait a few minutes."),
}

#: (now, completed, path, our instance, are we the initiator): make the connection; None when it may not be.
Adopt: TypeAlias = "Callable[[Instant, Completed, PathKey, int, bool], Peering | None]"


class _Attempt(NamedTuple):
    """A claim that we answered."""

    mailbox: bytes
    channel: told.RelayChannel
    responder: XxResponder
    instance: int
    deadline: Instant


class ExposerPairing:
    """Keeps one code valid until somebody has paired by it; with `keep` for ever."""

    def __init__(
        self, context: Context, client: Client, *, grants: tuple[dict[str, Any], ...], keep: bool, adopt: Adopt, now: Instant
    ) -> None:
        self.grants = grants
        self.is_done = False
        self._context = context
        self._client = client
        self._keep = keep
        self._adopt = adopt
        self._nameplate: int | None = None
        self._code: Code | None = None
        self._pake: Pake | None = None
        self._attempt: _Attempt | None = None
        self._has_init = False
        self._failures = 0
        self._expires_at: Instant | None = None
        self._allocate_at: Instant | None = None
        self._asked_at: Instant | None = None
        self._is_asking = False  # a code is wanted from the server; what it gives unasked is no code of ours
        self._ask(now)

    def renew(self, now: Instant) -> None:
        """One more code, now: also after the first one has done its work."""
        self.is_done = False
        if self._attempt is None:
            self._withdraw(now)
            self._ask(now)

    def close(self, now: Instant) -> None:
        self.is_done = True
        self._attempt = None
        self._withdraw(now)

    def handle_event(self, now: Instant, event: told.ClientEvent) -> None:
        if self.is_done:
            return
        match event:
            case told.Allocated(nameplate=nameplate, expires_s=expires_s) if self._attempt is None and self._is_asking:
                self._issue(now, nameplate, expires_s)
            case told.NameplateLost(nameplate=nameplate) if nameplate == self._nameplate:
                self._withdraw(now)
                self._ask(now)
            case told.ClaimReceived(nameplate=nameplate) if nameplate == self._nameplate and self._attempt is None:
                self._answer(now, event)
            case told.Posted(mailbox=mailbox, body=body):
                if self._attempt is not None and mailbox == self._attempt.mailbox and body[:1] == bytes((POST_FAILURE,)):
                    self._fail(now, Problem.WRONG_CODE, "Somebody tried a wrong code; the old one is used up.")
            case told.Refused(what="allocate", code=code, text=text) if self._is_asking:
                self._is_asking = False
                # What can heal is tried again: the server is full, or busy.
                final = code in (RefusalCode.DENIED, RefusalCode.VERSION)
                self._context.emit(Troubled(problem=Problem.SERVER_REFUSED, text=_server_says(text), is_final=final))
                if not final:
                    self._allocate_at = Instant(now + max(FIRST_DELAY, event.retry_after))
            case _:
                pass

    def handle_init(self, now: Instant, path: PathKey, datagram: Buffer) -> bool:
        """An XX init; False when it is not for us."""
        attempt = self._attempt
        if attempt is None or not self._is_relayed(attempt, path):
            return False
        try:
            response = attempt.responder.handle_init(bytes(datagram))
        except MalformedPacket:
            if self._has_init:
                self._context.drops["second pairing init"] += 1
            else:
                self._client.post(now, attempt.mailbox, bytes((POST_FAILURE,)))
                self._fail(now, Problem.WRONG_CODE, "Somebody tried a wrong code; the old one is used up.")
            return True
        self._has_init = True
        self._context.send(path, response)
        return True

    def handle_finish(self, now: Instant, path: PathKey, datagram: Buffer) -> bool:
        attempt = self._attempt
        if attempt is None or attempt.responder.index != int.from_bytes(datagram[8:12], "big"):
            return False
        if not self._is_relayed(attempt, path):
            self._context.drops["pairing past the server"] += 1
            return True
        try:
            completed = attempt.responder.handle_finish(bytes(datagram))
        except MalformedPacket:
            self._context.drops["pairing finish not authentic"] += 1
            return True
        self._attempt = None
        self._failures = 0
        self._client.leave_mailbox(now, attempt.mailbox)
        if self._keep:
            self._ask(now)
        else:
            self.is_done = True
        self._adopt(now, completed, path, attempt.instance, False)
        return True

    def handle_timeout(self, now: Instant) -> None:
        if self.is_done:
            return
        if self._attempt is not None and now >= self._attempt.deadline:
            self._fail(now, Problem.CODE_UNANSWERED, "Somebody used the code and fell silent; the old one is used up.")
        if self._expires_at is not None and now >= self._expires_at:
            self._withdraw(now)
            self._context.emit(Troubled(problem=Problem.CODE_EXPIRED, text="The code has expired: here comes a fresh one."))
            self._ask(now)
        if self._allocate_at is not None and now >= self._allocate_at:
            self._ask(now)

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        return earliest(self._attempt.deadline if self._attempt else None, self._expires_at, self._allocate_at)

    def _is_relayed(self, attempt: _Attempt, path: PathKey) -> bool:
        """By the server, through the channel of the claim: any other source address may be forged, and would be believed."""
        return path.prefix == attempt.channel.channel and self._client.is_server(path.socket_id, path.remote)

    def _ask(self, now: Instant) -> None:
        """The only way to a code: a server that could hand one out unasked would choose how often it may guess."""
        self._allocate_at = None
        if self._is_asking:
            return
        if self._asked_at is not None and now < self._asked_at + ASK_SPACING:
            self._allocate_at = Instant(self._asked_at + ASK_SPACING)
            return
        self._is_asking = True
        self._asked_at = now
        self._client.allocate(now)

    def _issue(self, now: Instant, nameplate: int, expires_s: int) -> None:
        self._is_asking = False
        if self._nameplate is not None:
            self._client.release(now, self._nameplate)
        text = make_code(nameplate, self._context.entropy, words=CODE_WORDS)
        self._nameplate = nameplate
        self._code = parse_code(text)
        self._pake = Pake("A", self._code, self._context.entropy)
        lifetime = min(max(float(expires_s), SHORTEST_LIFETIME), CODE_LIFETIME)
        self._expires_at = Instant(now + lifetime)
        self._context.emit(CodeIssued(code=text, expires_s=lifetime))

    def _withdraw(self, now: Instant) -> None:
        if self._nameplate is not None:
            self._client.release(now, self._nameplate)
        self._nameplate = self._code = self._pake = self._expires_at = None

    def _answer(self, now: Instant, claim: told.ClaimReceived) -> None:
        """From here on the code is spent."""
        pake, context = self._pake, self._context
        assert pake is not None
        self._withdraw(now)
        try:
            psk = pake.finish(claim.body)
        except MalformedPacket:
            self._client.post(now, claim.mailbox, bytes((POST_FAILURE,)))
            self._fail(now, Problem.WRONG_CODE, "Somebody sent rubbish for the code; the old one is used up.")
            return
        self._client.post(now, claim.mailbox, bytes((POST_ANSWER,)) + pake.message + pake.confirmation)
        instance = context.new_instance()
        responder = XxResponder(
            static=context.static,
            psk=psk,
            prologue=xx_prologue(claim.nameplate, pake.message, claim.body),
            index=context.new_index(),
            params=context.params(instance),
            entropy=context.entropy,
        )
        self._has_init = False
        self._attempt = _Attempt(claim.mailbox, claim.channel, responder, instance, Instant(now + ANSWER_TIMEOUT))

    def _fail(self, now: Instant, problem: Problem, text: str) -> None:
        if self._attempt is not None:
            self._client.leave_channel(now, self._attempt.channel.channel)
        self._attempt = None
        self._failures += 1
        beyond = self._failures - PATIENT_FAILURES
        delay = 0.0 if beyond < 0 else min(FIRST_DELAY * 2**beyond, LONGEST_DELAY)
        then = "A fresh one follows." if not delay else f"A fresh one follows in {delay:.0f} seconds."
        self._context.emit(Troubled(problem=problem, text=f"{text} {then}"))
        self._allocate_at = Instant(now + delay)


class ConnectorPairing:
    """Turns a code into a connection, or into one final sentence."""

    def __init__(self, context: Context, client: Client, code: Code, *, adopt: Adopt, now: Instant) -> None:
        self.is_done = False
        self.handshake: InitiatorHandshake | None = None
        self.peering: Peering | None = None  # what came of it
        self._context = context
        self._client = client
        self._code = code
        self._adopt = adopt
        self._pake = Pake("B", code, context.entropy)
        self._mailbox: bytes | None = None
        self._early: list[told.Posted] = []  # what overtook the answer to our claim
        self._channel: told.RelayChannel | None = None
        self._instance = context.new_instance()
        self._deadline: Instant | None = None
        client.claim(now, code.nameplate, self._pake.message)

    def close(self, now: Instant) -> None:
        self.is_done = True
        if self.handshake is not None:
            self._context.answers.pop(self.handshake.index, None)

    def handle_event(self, now: Instant, event: told.ClientEvent) -> None:
        if self.is_done or (self.handshake is not None and self.handshake.completed is not None):
            return
        match event:
            case told.ClaimAccepted(nameplate=nameplate, mailbox=mailbox, channel=channel) if nameplate == self._code.nameplate:
                self._mailbox, self._channel = mailbox, channel
                self._deadline = Instant(now + ANSWER_TIMEOUT)
                early, self._early = self._early, []
                for post in early:
                    self.handle_event(now, post)
            case told.Posted(mailbox=mailbox, body=body):
                if mailbox == self._mailbox:
                    self._on_post(now, body)
                elif self._mailbox is None and len(self._early) < MAX_EARLY:
                    self._early.append(event)
            case told.Refused(what="claim", code=code, text=text):
                problem, sentence = _REFUSALS.get(int(code), (Problem.SERVER_REFUSED, _server_says(text)))
                self._fail(now, problem, sentence)
            case told.PeerGone(channel=channel, mailbox=mailbox):
                if mailbox is not None and mailbox == self._mailbox:
                    self._fail(now, Problem.PEER_LOST, "The other side has left: ask for a fresh code.")
            case told.ChannelMoved(old=old, new=new) if old == self._channel:
                self._channel = new
                if self.handshake is not None:
                    self.handshake.move(now, new.path_key)
            case _:
                pass

    def handle_answer(self, now: Instant, path: PathKey, datagram: Buffer) -> bool:
        handshake = self.handshake
        if handshake is None:
            return False
        completed = handshake.handle_datagram(now, datagram)
        if completed is not None:
            self._deadline = None
            finish = handshake.poll_transmit(now)
            if finish is not None:
                self._context.send(path, finish)  # before anything under the new keys
            self.peering = self._adopt(now, completed, handshake.proven(path), self._instance, True)
            if self.peering is None:
                self.close(now)
        return True

    def handle_timeout(self, now: Instant) -> None:
        if self.is_done:
            return
        if self._deadline is not None and now >= self._deadline:
            self._fail(now, Problem.CODE_UNANSWERED, "The other side did not answer; the code is used up: ask for a fresh one.")
        elif self.handshake is not None:
            datagram = self.handshake.poll_transmit(now)
            if datagram is not None:
                self._context.send(self.handshake.path, datagram)

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        return earliest(self._deadline, self.handshake.poll_timeout() if self.handshake else None)

    def _on_post(self, now: Instant, body: bytes) -> None:
        if body[:1] == bytes((POST_FAILURE,)):
            self._fail(now, Problem.WRONG_CODE, f"{WRONG_CODE} Ask for a fresh one.")
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
            self._fail(now, Problem.WRONG_CODE, f"{WRONG_CODE} Ask for a fresh one.")
            return
        context = self._context
        initiator = Initiator(
            Pattern.XX,
            static=context.static,
            remote_static=None,
            psk=psk,
            prologue=xx_prologue(self._code.nameplate, message, self._pake.message),
            index=context.new_index(),
            params=context.params(self._instance),
            entropy=context.entropy,
        )
        self._deadline = Instant(now + ANSWER_TIMEOUT)
        self.handshake = InitiatorHandshake(
            initiator=initiator,
            path=self._channel.path_key,
            now=now,
            timestamp=context.timestamp,
            rng=context.rng,
            drops=context.drops,
        )
        context.answers[initiator.index] = self.handle_answer

    def _fail(self, now: Instant, problem: Problem, text: str) -> None:
        self.close(now)
        self._context.emit(Troubled(problem=problem, text=text, is_final=True))


def _server_says(text: str) -> str:
    """The server's own words, made harmless for a terminal."""
    words = "".join(character for character in text if character.isprintable()).strip(" .")
    return f"The server refused: {words}." if words else "The server refused without saying why."
