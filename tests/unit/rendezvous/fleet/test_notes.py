"""Notes between two servers: repeated until acknowledged, acted on once, and nobody else makes one."""

from __future__ import annotations

from tunnel.core.trace import Drops
from tunnel.rendezvous.fleet.directory import Directory, Tell
from tunnel.rendezvous.fleet.notes import AGAIN, ALL, MAX_NOTES, REMEMBERED, SENDINGS, Notes, channel_of
from tunnel.rendezvous.fleet.records import Kind, Note
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.units import Instant

NOW = Instant(100.0)
SEAL = Seal(b"a key that all servers of the fleet have")


class End:
    """One server's notes, and what it heard."""

    def __init__(self, instance: int, seal: Seal = SEAL) -> None:
        self.directory = Directory()
        self.heard: list[Note] = []
        self.lost: list[Instant] = []
        self.drops = Drops()
        self.notes = Notes(seal, self.directory, instance, lambda now, note: self.heard.append(note), self.drops)

    def told(self) -> list[Tell]:
        orders = self.directory.poll_orders()
        self.directory.finish(NOW, [{}] * len(orders))
        return [order for order in orders if isinstance(order, Tell)]

    def send(self, to: int, now: Instant = NOW) -> None:
        self.notes.send(now, to, Kind.LISTENS, b"name", b"", self.lost.append)


def test_a_note_is_heard_once_and_acknowledged_each_time() -> None:
    one, other = End(1), End(2)
    one.send(2)
    (tell,) = one.told()
    assert tell.channel == channel_of(2)
    for _ in range(2):
        other.notes.hear(NOW, tell.channel, tell.data)
    assert [note.what for note in other.heard] == [b"name"]
    acks = other.told()
    assert [ack.channel for ack in acks] == [channel_of(1)] * 2
    one.notes.hear(NOW, acks[0].channel, acks[0].data)
    one.notes.handle_timeout(Instant(NOW + 100))
    assert one.told() == []
    assert one.lost == []


def test_a_note_without_an_answer_is_sent_three_times_and_then_lost() -> None:
    one, sent = End(1), 0
    one.send(2)
    for _ in range(10):
        sent += len(one.told())
        due = one.notes.poll_timeout()
        if due is None:
            break
        one.notes.handle_timeout(due)
    assert sent == SENDINGS
    assert one.lost == [NOW + AGAIN * (1 + 2 + 4)]
    assert one.drops["fleet_note_lost"] == 1


def test_what_is_said_to_all_is_neither_acknowledged_nor_heard_by_oneself() -> None:
    one, other = End(1), End(2)
    one.notes.shout(NOW, Kind.GUESS, ("192.0.2.1", "192.0.2"))
    (tell,) = one.told()
    assert tell.channel == ALL
    for end in (one, other):
        end.notes.hear(NOW, ALL, tell.data)
    assert one.heard == []
    assert [note.keys for note in other.heard] == [("192.0.2.1", "192.0.2")]
    assert other.told() == []


def test_a_note_under_another_key_or_from_another_channel_is_dropped() -> None:
    stranger, other = End(1, Seal(b"k" * 32)), End(2)
    stranger.send(2)
    (tell,) = stranger.told()
    other.notes.hear(NOW, tell.channel, tell.data)
    real = End(1)
    real.send(3)
    (tell,) = real.told()
    other.notes.hear(NOW, channel_of(2), tell.data)
    for junk in (b"", b"x" * 16, b"\xc1" * 40):
        other.notes.hear(NOW, ALL, junk)
    assert other.heard == []
    assert other.drops["fleet_note"] == 5


def test_of_too_many_notes_the_oldest_counts_as_lost() -> None:
    one = End(1)
    for _ in range(MAX_NOTES + 1):
        one.send(2)
        one.told()
    assert one.lost == [NOW]


def test_after_many_other_notes_a_repetition_is_acted_on_again() -> None:
    one, other = End(1), End(2)
    tells = []
    for _ in range(REMEMBERED + 1):
        one.notes.shout(NOW, Kind.GUESS, ("192.0.2.1",))
        tells += one.told()
    for tell in (*tells, tells[0], tells[-1]):
        other.notes.hear(NOW, ALL, tell.data)
    assert len(other.heard) == REMEMBERED + 2
