"""The first meeting, by a code: the exposer's flow.  The exposer, never the server, counts guesses.

    exposer                        server                          connector
    allocate                     → nameplate
    code = nameplate-word-word   ~ told by voice ~                 code
                                   claim, PAKE message           ← claim
    POST_ANSWER, PAKE message    → mailbox                       → finishes the PAKE: right code or wrong one
    ↔ Noise XXpsk0 over the relay channel of the claim, the connector begins

Answering a claim spends a guess, whatever follows.  A code for one peer has one; a room's code is good for many joiners, each
with a PAKE of its own, until five guesses came to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.node.context import Context
from tunnel.node.events import CodeIssued, KnownPeer, Problem, Troubled
from tunnel.node.flow import Flow
from tunnel.node.handshakes import receiver_index
from tunnel.notation import printable
from tunnel.pairing.code import CODE_WORDS, ROOM_CODE_WORDS, Code, Purpose, make_code, parse_code
from tunnel.pairing.pake import Pake
from tunnel.rendezvous.events import ChannelMoved, RelayChannel, Told
from tunnel.rendezvous.messages import Allocate, Allocated, ClaimReceived, Posted, RefusalCode, Refused
from tunnel.transport.crypto.handshake import FINISH, INIT, Completed, XxResponder, xx_prologue
from tunnel.units import Buffer, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.peering import Peering
    from tunnel.rendezvous.client import Client

CODE_LIFETIME: Final = Seconds(600.0)  # as people are told
SHORTEST_LIFETIME: Final = Seconds(60.0)  # whatever the server says
ASK_SPACING: Final = Seconds(1.0)  # between two codes: a server that loses each at once must not flood the screen
ROOM_GUESSES: Final = 5  # answered claims that came to nothing, until such a code ends; so many are under way at once, too
ROOM_CLAIMS: Final = 1_000  # that the server may let through until the code is renewed: joiners come back when we are busy
RENEW_INTERVAL: Final = Seconds(200.0)  # of such a code, a third of its lifetime at the server
ANSWER_TIMEOUT: Final = Seconds(15.0)  # of silence after a spent code, on either side
PATIENT_FAILURES: Final = 3  # codes that guesses ended in a row, before a fresh one has to wait: nobody guesses at network speed
FIRST_DELAY: Final = Seconds(5.0)
LONGEST_DELAY: Final = Seconds(600.0)

POST_ANSWER: Final = 1  # first byte of a mailbox body: PAKE message and confirmation follow
POST_FAILURE: Final = 2  # the codes differ
POST_BUSY: Final = 3  # as many as may are trying this code just now: claim it again in a moment

#: (now, completed, path, our instance, are we the initiator): make the connection; None when it may not be.
Adopt: TypeAlias = "Callable[[Instant, Completed, PathKey, int, bool], Peering | None]"


class CodeTerms(NamedTuple):
    """The terms of a code.  `guesses`: answered claims that may fail before it ends; one means one claim."""

    words: int
    guesses: int
    purpose: Purpose

    @property
    def is_for_many(self) -> bool:
        return self.guesses > 1


FOR_ONE: Final = CodeTerms(CODE_WORDS, 1, Purpose.PORTS)
FOR_MANY: Final = CodeTerms(ROOM_CODE_WORDS, ROOM_GUESSES, Purpose.ROOM)


@dataclass(slots=True, eq=False)
class _Attempt:
    """A claim that we answered."""

    claim: ClaimReceived
    channel: RelayChannel
    responder: XxResponder
    instance: int
    deadline: Instant
    has_init: bool = False


class ExposerPairing(Flow):
    """Keeps one code valid: until somebody has paired by it (with `keep` one after the other), or FOR_MANY until it is closed."""

    place = "pairing"
    fate = "ended an attempt to pair"

    def __init__(
        self,
        context: Context,
        client: Client,
        *,
        grants: tuple[dict[str, Any], ...],
        keep: bool,
        adopt: Adopt,
        now: Instant,
        terms: CodeTerms = FOR_ONE,
    ) -> None:
        super().__init__(context)
        self.grants = grants
        self._client = client
        self._keep = keep
        self._adopt = adopt
        self._terms = terms
        self.code = ""  # that is good now, as people are told
        self.lifetime: float | None = None  # seconds that it works from when it was given; None: as long as this flow lasts
        self.paired: list[KnownPeer] = []  # who has come by its codes
        self.refusal = ""  # why the server gives none, where it never will
        self._nameplate: int | None = None
        self._code: Code | None = None
        self._attempts: dict[bytes, _Attempt] = {}  # by mailbox
        self._failures = 0  # of this code
        self._ended = 0  # codes in a row that failures ended
        self._expires_at: Instant | None = None
        self._renew_at: Instant | None = None
        self._allocate_at: Instant | None = None
        self._asked_at: Instant | None = None
        self._is_asking = False  # a code is wanted from the server; what it gives unasked is no code of ours
        self._ask(now)

    def renew(self, now: Instant) -> None:
        """One more code, now: also after the first one has done its work.  Whoever holds one for many gets in by it no more."""
        self.is_done = False
        if self._terms.is_for_many:
            for attempt in self._attempts.values():
                self._client.leave_mailbox(now, attempt.claim.mailbox)
                self._client.leave_channel(now, attempt.channel.channel)
            self._forget(*self._attempts)
        if not self._attempts:
            self._withdraw(now)
            self._ask(now)

    def close(self, now: Instant) -> None:
        self.is_done = True
        self._forget(*self._attempts)
        self._withdraw(now)

    def fail(self, now: Instant) -> None:
        """A fault of ours has met an attempt; nobody knows how far it went, so it counts as guesses that end the code."""
        self._forget(*self._attempts)
        if not self.is_done:
            self._is_asking = False
            self._allocate_at = Instant(now + self._end_code(now))

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        if self.is_done:
            return
        match event:
            case Told(Allocated(nameplate=nameplate, expires_s=expires_s)) if self._is_asking:
                self._issue(now, nameplate, expires_s)
            case Told(Refused(), Allocate(wanted=nameplate)) if nameplate and nameplate == self._nameplate:
                if self._failures or self._under_way(nameplate):  # else a server could lose each code after its guesses
                    self._allocate_at = Instant(now + self._end_code(now))
                else:
                    self._withdraw(now)
                    self._ask(now)
            case Told(ClaimReceived() as claim, channel=RelayChannel() as channel) if claim.nameplate == self._nameplate:
                self._answer(now, claim, channel)
            case Told(Posted(mailbox=mailbox, body=body)):
                attempt = self._attempts.get(mailbox)
                if attempt is not None and body[:1] == bytes((POST_FAILURE,)):
                    self._fail(now, attempt.claim, Problem.WRONG_CODE, "Somebody tried a wrong code")
            case Told(Refused(code=code, text=text, retry_after_s=seconds), Allocate(wanted=0)) if self._is_asking:
                self._is_asking = False
                # What can heal is tried again: the server is full, or busy.
                final = code in (RefusalCode.DENIED, RefusalCode.VERSION)
                self._context.emit(Troubled(problem=Problem.SERVER_REFUSED, text=server_says(text), is_final=final))
                if final:
                    self.refusal = server_says(text)
                else:
                    self._allocate_at = Instant(now + max(FIRST_DELAY, seconds))
            case _:
                pass

    def on_handshake(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        with self.wall(now):
            if datagram[0] == INIT:
                self._on_init(now, path, datagram)
            elif datagram[0] == FINISH:
                self._on_finish(now, path, datagram)

    def _on_init(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        attempt = next((each for each in self._attempts.values() if self._is_relayed(each, path)), None)
        if attempt is None:
            self._context.drops["pairing past the server"] += 1
            return
        try:
            response = attempt.responder.handle_init(bytes(datagram))
        except MalformedPacket:
            if attempt.has_init:
                self._context.drops["second pairing init"] += 1
            else:
                self._client.post(now, attempt.claim.mailbox, bytes((POST_FAILURE,)))
                self._fail(now, attempt.claim, Problem.WRONG_CODE, "Somebody tried a wrong code")
            return
        attempt.has_init = True
        self._context.send(path, response)

    def _on_finish(self, now: Instant, path: PathKey, datagram: Buffer) -> None:
        index = receiver_index(datagram)
        attempt = next((each for each in self._attempts.values() if each.responder.index == index), None)
        if attempt is None:
            return
        if not self._is_relayed(attempt, path):
            self._context.drops["pairing past the server"] += 1
            return
        try:
            completed = attempt.responder.handle_finish(bytes(datagram))
        except MalformedPacket:
            self._context.drops["pairing finish not authentic"] += 1
            return
        if completed.params.purpose not in (0, self._terms.purpose.value):
            self._client.post(now, attempt.claim.mailbox, bytes((POST_FAILURE,)))
            self._fail(now, attempt.claim, Problem.WRONG_CODE, "Somebody wanted something else by the code")
            return
        self._forget(attempt.claim.mailbox)
        self._ended = 0
        self._client.leave_mailbox(now, attempt.claim.mailbox)
        if not self._terms.is_for_many:
            self.is_done = not self._keep
            if self._keep:
                self._ask(now)
        peering = self._adopt(now, completed, path, attempt.instance, False)
        if peering is not None:
            self.paired.append(peering.peer)

    def on_time(self, now: Instant) -> None:
        if self.is_done:
            return
        for attempt in [each for each in self._attempts.values() if now >= each.deadline]:
            self._fail(now, attempt.claim, Problem.CODE_UNANSWERED, "Somebody used the code and fell silent")
        if self._expires_at is not None and now >= self._expires_at:
            self._withdraw(now)
            self._context.emit(Troubled(problem=Problem.CODE_EXPIRED, text="The code has expired: here comes a fresh one."))
            self._ask(now)
        if self._renew_at is not None and self._nameplate is not None and now >= self._renew_at:
            self._renew_at = Instant(now + RENEW_INTERVAL)
            self._client.renew(now, self._nameplate)
        if self._allocate_at is not None and now >= self._allocate_at:
            self._ask(now)

    def poll_timeout(self) -> Instant | None:
        if self.is_done:
            return None
        deadlines = (each.deadline for each in self._attempts.values())
        return earliest(self._expires_at, self._renew_at, self._allocate_at, *deadlines)

    def _forget(self, *mailboxes: bytes) -> None:
        """The attempts of these."""
        for mailbox in mailboxes:
            attempt = self._attempts.pop(mailbox, None)
            if attempt is not None:
                self._context.demux.channels.pop(attempt.channel.key, None)
                self._context.demux.handshakes.pop(attempt.responder.index, None)

    def _is_relayed(self, attempt: _Attempt, path: PathKey) -> bool:
        """By the server, through the channel of the claim: any other source address may be forged, and would be believed."""
        return self._client.carries(attempt.channel, path)

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
        self._client.allocate(now, ROOM_CLAIMS if self._terms.is_for_many else 1, self)

    def _issue(self, now: Instant, nameplate: int, expires_s: int) -> None:
        self._is_asking = False
        if self._nameplate is not None:
            self._client.release(now, self._nameplate)
        text = make_code(nameplate, self._context.entropy, words=self._terms.words)
        self._nameplate = nameplate
        self._code, self.code = parse_code(text), text
        self._failures = 0
        lifetime = min(max(float(expires_s), SHORTEST_LIFETIME), CODE_LIFETIME)
        if self._terms.is_for_many:
            self._renew_at = Instant(now + min(RENEW_INTERVAL, lifetime / 3))
        else:
            self._expires_at = Instant(now + lifetime)
        self.lifetime = None if self._terms.is_for_many else lifetime
        self._context.emit(CodeIssued(code=text, expires_s=self.lifetime))

    def _withdraw(self, now: Instant) -> None:
        if self._nameplate is not None:
            self._client.release(now, self._nameplate)
        self._nameplate = self._code = self._expires_at = self._renew_at = None
        self.code = ""

    def _answer(self, now: Instant, claim: ClaimReceived, channel: RelayChannel) -> None:
        """From here on this guess is spent, and with the last one the code: each claim has a PAKE of its own."""
        context, code = self._context, self._code
        assert code is not None
        if claim.mailbox in self._attempts:
            return
        if self._failures + self._under_way(claim.nameplate) >= self._terms.guesses:
            self._client.post(now, claim.mailbox, bytes((POST_BUSY,)))
            self._client.leave_channel(now, claim.channel)
            context.drops["claims while enough are under way"] += 1
            return
        if not self._terms.is_for_many:
            self._withdraw(now)
        pake = Pake("A", code, context.entropy)
        instance = context.new_instance()
        try:
            psk = pake.finish(claim.body)
        except MalformedPacket:
            self._client.post(now, claim.mailbox, bytes((POST_FAILURE,)))
            self._fail(now, claim, Problem.WRONG_CODE, "Somebody sent rubbish for the code")
            return
        self._client.post(now, claim.mailbox, bytes((POST_ANSWER,)) + pake.message + pake.confirmation)
        responder = XxResponder(
            static=context.static,
            psk=psk,
            prologue=xx_prologue(claim.nameplate, pake.message, claim.body),
            index=context.demux.new_index(),
            params=context.params(instance, purpose=self._terms.purpose),
            entropy=context.entropy,
        )
        self._attempts[claim.mailbox] = _Attempt(claim, channel, responder, instance, Instant(now + ANSWER_TIMEOUT))
        context.demux.channels[channel.key] = self
        context.demux.handshakes[responder.index] = self

    def _fail(self, now: Instant, claim: ClaimReceived, problem: Problem, text: str) -> None:
        """One guess has come to nothing; a person is told of each."""
        self._forget(claim.mailbox)
        self._client.leave_channel(now, claim.channel)
        terms = self._terms
        if terms.is_for_many and claim.nameplate != self._nameplate:
            self._context.emit(Troubled(problem=problem, text=f"{text}, one that had ended already."))
            return
        self._failures += 1
        left = terms.guesses - self._failures
        if left > 0:
            more = f"{left} more" if left > 1 else "one more"
            self._context.emit(Troubled(problem=problem, text=f"{text}: {more} such attempt{'s' * (left > 1)}, and it ends."))
            return
        delay = self._end_code(now)
        then = "A fresh one follows." if not delay else f"A fresh one follows in {delay:.0f} seconds."
        self._context.emit(Troubled(problem=problem, text=f"{text}; the old one is used up. {then}"))
        self._allocate_at = Instant(now + delay)

    def _under_way(self, nameplate: int) -> int:
        """Guesses at this code that we have answered, and know nothing more of."""
        return sum(each.claim.nameplate == nameplate for each in self._attempts.values())

    def _end_code(self, now: Instant) -> Seconds:
        """Guesses have ended the code: how long a fresh one has to wait."""
        self._withdraw(now)
        self._ended += 1
        beyond = self._ended - PATIENT_FAILURES
        return Seconds(0.0 if beyond < 0 else min(FIRST_DELAY * 2**beyond, LONGEST_DELAY))


def server_says(text: str) -> str:
    """The server's own words, made harmless for a terminal."""
    words = printable(text).strip(" .")
    return f"The server refused: {words}." if words else "The server refused without saying why."
