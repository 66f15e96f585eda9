"""Thousands of clients on one socket: each has an address of 127.0.0.0/8 of its own, as the kernel lets a sender choose it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tunnel.doors.udp import linux, many
from tunnel.doors.udp.many import ManySocket
from tunnel.rendezvous import messages
from tunnel.units import Address

WINDOW: Final = 512  # questions on their way at once, while clients register
PATIENCE: Final = 0.5  # seconds, then they are asked again
vars(many)["MAX_TOLD"] = vars(linux)["MAX_LOCALS"] = 1 << 20  # so that this side costs as little as it can
_TRANSACTION: Final = slice(2, 10)  # in a request
_HEAD: Final = bytes((messages.REQUEST, messages.VERSION))


def address(number: int) -> str:
    """Each in another /16 than the one before, as a server holds prefixes back when it is behind."""
    return f"127.{1 + number % 250}.{number // 250 % 250}.{1 + number // 62_500}"


class Client:
    __slots__ = ("channel", "cookie", "host", "refresh", "sent_at", "session", "state", "transaction")

    def __init__(self, number: int) -> None:
        self.host = address(number)
        self.session = os.urandom(16)
        self.cookie = b""
        self.refresh = b""  # the request that it says again and again, behind its transaction
        self.channel = b""
        self.state = 0
        self.sent_at = 0.0
        self.transaction = random.getrandbits(63)

    def request(self, message: messages.RequestMessage) -> bytes:
        self.transaction += 1
        cookie = b"" if isinstance(message, messages.Hello) else self.cookie
        return messages.encode_request(self.transaction, self.session, message, cookie=cookie)

    def again(self, message: messages.RequestMessage) -> bytes:
        """That request, which is always the same one; `refresh` is emptied when the cookie has changed."""
        if not self.refresh:
            self.refresh = self.request(message)[_TRANSACTION.stop :]
        self.transaction += 1
        return _HEAD + self.transaction.to_bytes(8, "big") + self.refresh


class Crowd:
    """Their socket, and who is who."""

    def __init__(self, port: int, count: int, first: int = 0) -> None:
        self.udp = ManySocket("0.0.0.0", 0, tells_local=True)
        self.server = Address("127.0.0.1", port)
        self.clients = [Client(first + number) for number in range(count)]
        self.by_host = {each.host: each for each in self.clients}

    def say(self, client: Client, data: bytes) -> None:
        while not self.udp.post(self.server, data, len(data), 0, client.host):
            time.sleep(0.0005)

    def deliver(self) -> None:
        while not self.udp.deliver():
            time.sleep(0.0005)

    def heard(self) -> Iterator[tuple[Client, memoryview]]:
        """All that has come."""
        while batches := self.udp.receive_many():
            for batch in batches:
                client = self.by_host.get(batch.local)
                if client is not None:
                    for at in range(0, len(batch.buffer), batch.stride):
                        yield client, batch.buffer[at : at + batch.stride]

    def ask_all(
        self,
        clients: Sequence[Client],
        question: Callable[[Client], messages.RequestMessage],
        rest: Callable[[Client, memoryview], None],
    ) -> None:
        """Each its question, until each is answered; what else comes goes to `rest`."""
        waiting = dict.fromkeys(clients, 0.0)
        todo = list(reversed(clients))
        out = 0
        while waiting:
            now = time.monotonic()
            while todo and out < WINDOW:
                client = todo.pop()
                if client in waiting:
                    self.say(client, client.request(question(client)))
                    waiting[client] = now
                    out += 1
            self.deliver()
            quiet = True
            for client, data in self.heard():
                quiet = False
                if data[0] == messages.RESPONSE and client in waiting:
                    answer = messages.decode_response(bytes(data)).message
                    if isinstance(answer, messages.Retry | messages.Welcome):
                        client.cookie = answer.cookie
                    if not isinstance(answer, messages.Refused):
                        del waiting[client]
                    out -= 1
                else:
                    rest(client, data)
            if quiet and out and now - max(waiting.values()) > PATIENCE:
                todo, out = list(waiting), 0
            elif quiet:
                time.sleep(0.0002)

    def register(self, rooms: int = 3) -> None:
        """All of them, each waiting in so many rooms of its own."""
        self.ask_all(self.clients, lambda _: messages.Hello(), ignore)
        self.ask_all(
            self.clients,
            lambda client: messages.Join(messages.Role.LISTEN, tuple(room(client, each) for each in range(rooms))),
            ignore,
        )

    def ack(self, client: Client, data: memoryview) -> messages.PushMessage | None:
        if data[0] != messages.PUSH:
            return None
        push = messages.decode_push(bytes(data))
        self.say(client, messages.encode_push_ack(client.session, push.push_id))
        return push.message


def ignore(_client: Client, _data: memoryview) -> None:
    pass


def room(client: Client, number: int = 0) -> bytes:
    return client.session[:15] + bytes((number,))
