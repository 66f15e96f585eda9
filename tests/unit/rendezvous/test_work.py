"""The work of a server for one introduction: counted in instructions, as time differs with the machine and its load."""

from __future__ import annotations

from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tests.work import instructions
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Answer, Server
from tunnel.units import Address, Instant

PAIRS = 40
MOST = 6_500  # instructions for one, from the Hello to the acknowledgement of its end
NOW = Instant(1000.0)


class Desk:
    """A server, as its loop drives it: each datagram has come alone."""

    def __init__(self) -> None:
        self.entropy = entropy_of(11)
        limits = ServerConfig(requests_per_second=1e9, request_burst=10**9)
        self.server = Server(limits, sockets=SOCKETS, now=NOW, entropy=self.entropy, unix_time=lambda: 1_800_000_000)
        self.said: list[Answer] = []
        self.work = 0

    def handle(self, asked: list[tuple[Address, bytes]]) -> list[Answer]:
        self.said.clear()
        self.work += instructions(lambda: self._handle(asked))
        return list(self.said)

    def _handle(self, asked: list[tuple[Address, bytes]]) -> None:
        server = self.server
        for remote, data in asked:
            buffer = memoryview(data)
            if data[0] == messages.PUSH_ACK:
                server.acknowledged(NOW, buffer)
            elif server.refreshed(NOW, V4, remote, buffer) is None:
                server.load.charge_all(NOW, [server.handle_alone(NOW, V4, remote, buffer)], 0.00003)
            self.said += server.answers()


def test_an_introduction_takes_a_server_little_work() -> None:
    desk = Desk()
    owners = [(Address(f"20.{number}.1.1", 1000), desk.entropy(16), desk.entropy(16)) for number in range(PAIRS)]
    dialers = [(Address(f"30.{number}.1.1", 1000), desk.entropy(16)) for number in range(PAIRS)]

    def requests(places: list[tuple[Address, bytes]], said: list[messages.RequestMessage]) -> list[tuple[Address, bytes]]:
        asked = zip(places, said, strict=True)
        return [
            (at, messages.encode_request(int.from_bytes(desk.entropy(7), "big"), session, message, cookie=cookies.get(at, b"")))
            for (at, session), message in asked
        ]

    def keep(said: list[Answer]) -> None:
        for _, at, data in said:
            answer = messages.decode_response(data).message
            assert isinstance(answer, messages.Retry)
            cookies[at] = answer.cookie

    def acknowledge(said: list[Answer]) -> list[messages.PushMessage]:
        pushes = [(at, messages.decode_push(data)) for _, at, data in said if data[0] == messages.PUSH]
        assert desk.handle([(at, messages.encode_push_ack(push.session, push.push_id)) for at, push in pushes]) == []
        return [push.message for _, push in pushes]

    cookies: dict[Address, bytes] = {}
    waiting = [(at, session) for at, session, _ in owners]
    rooms = [name for _, _, name in owners]
    keep(desk.handle(requests(waiting, [messages.Hello()] * PAIRS)))
    desk.handle(requests(waiting, [messages.Join(messages.Role.LISTEN, (name,)) for name in rooms]))

    desk.work = 0
    keep(desk.handle(requests(dialers, [messages.Hello()] * PAIRS)))
    told = desk.handle(requests(dialers, [messages.Join(messages.Role.DIAL, (name,)) for name in rooms]))
    introduced = [each for each in acknowledge(told) if isinstance(each, messages.Introduced)]
    assert len(introduced) == 2 * PAIRS
    channels = {each.room: each.channel for each in introduced}
    told = desk.handle(requests(dialers, [messages.Leave(rooms=(name,), channels=(channels[name],)) for name in rooms]))
    assert len([each for each in acknowledge(told) if isinstance(each, messages.Gone)]) == PAIRS
    assert not len(desk.server.relay)
    assert desk.work < MOST * PAIRS
