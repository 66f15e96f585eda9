"""Meetings as a route keeps them: where each is announced, whose turn it is to be asked for, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tunnel.dht.meeting import Meeting
from tunnel.dht.topic import Topic
from tunnel.rendezvous.events import Hearer
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.dht.client import DhtClient

QUESTION_INTERVAL: Final = Seconds(0.5)  # between two questions to nodes that keep an address of ours: some 2 MB an hour in all


class Appointment:
    """A meeting and where it is announced."""

    __slots__ = (
        "body",
        "hearer",
        "hour",
        "is_over_at",
        "is_released",
        "is_told",
        "meeting",
        "nameplate",
        "room",
        "topics",
    )

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.topics: list[Topic] = []
        self.nameplate: int | None = None
        self.room = b""
        self.body: bytes | None = None  # of a claim that nobody has got yet
        self.is_over_at: Instant | None = None
        self.hearer: Hearer | None = None
        self.hour = 0  # of a code
        self.is_released = False  # a code that takes no claim any more
        self.is_told = False  # that nothing gets through to whoever was found

    def announce(self, now: Instant, client: DhtClient, found: Topic.Found) -> Topic:
        """Under one family of addresses; `found` as Topic has it."""
        topic = Topic(client, self.meeting.keys.info_hash, now, found=found)
        self.topics.append(topic)
        return topic

    def close_topics(self) -> None:
        for topic in self.topics:
            topic.close()
        self.topics.clear()


class Rounds:
    """All topics of a route are polled in turn, one question at a time, so that many cost no more than one."""

    def __init__(self) -> None:
        self._topics: deque[Topic] = deque()
        self._due_at: Instant | None = None

    def add(self, now: Instant, topic: Topic) -> None:
        """The newest first: whoever has just come is waited for by somebody."""
        self._topics.appendleft(topic)
        if self._due_at is None:
            self._due_at = Instant(now + QUESTION_INTERVAL)

    def handle_timeout(self, now: Instant) -> None:
        if self._due_at is None or now < self._due_at:
            return
        self._due_at = Instant(now + QUESTION_INTERVAL)
        while self._topics:
            topic = self._topics.popleft()
            if not topic.is_closed:
                self._topics.append(topic)
                topic.poll(now)
                return
        self._due_at = None

    def poll_timeout(self) -> Instant | None:
        return self._due_at


def why_no_path(meetings: Iterable[Meeting], *, varies: bool, may_have_gone: bool) -> str:
    """A sentence for a person.  `varies`: the router here uses another port for each destination.

    `may_have_gone`: what was found is the address of a peer that need not be there any more.
    """
    theirs = any(meeting.is_marked for meeting in meetings)
    if varies and theirs:
        why = "both routers use a new port for every destination"
    elif varies:
        why = "the router here uses a new port for every destination"
    elif theirs:
        why = "the other side's router uses a new port for every destination"
    else:
        why = "a firewall drops UDP, or both are behind one router that does not lead back inside"
    gone = "it has gone a short while ago, or " if may_have_gone else ""
    return (
        f"The other side was found in the DHT, but no packet gets through to it: {gone}{why}. The DHT has no relay; port mapping "
        "(UPnP-IGD, NAT-PMP or PCP) at either router, IPv6 at both ends, or a server with a relay would help."
    )
