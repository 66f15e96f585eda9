"""Carries out a fleet's orders in a Redis or Valkey: alone, in a cluster, or found by sentinels.

One connection carries the orders, a batch at a time, and one hears the channels.  Whatever goes wrong with either, both are
opened anew; the core decides what that means (tunnel.rendezvous.fleet.directory).  Opening takes several round trips, and may
have to try several hosts: it has more time than a batch, and whoever waits meanwhile hears that nothing comes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import coredis
import trio
from coredis.connection import TCPLocation
from coredis.exceptions import AuthenticationError, RedisError
from coredis.retry import NoRetryPolicy

from tunnel.errors import ServerUnreachableError
from tunnel.fleet.url import Kind, StoreUrl, parse
from tunnel.rendezvous.fleet.directory import PATIENCE, Drop, Entries, Look, Order, Put, Tell
from tunnel.rendezvous.fleet.members import SERVERS
from tunnel.shell.fleet import Feed

logging.getLogger("coredis").setLevel(logging.CRITICAL)  # it writes tracebacks of what we foresee

AGAIN: Final = 0.5  # seconds before the store is tried again
OPENING: Final = 8.0  # seconds for two connections with TLS and a password, where each answer takes half a second
CONNECTING: Final = 1.0  # seconds for one host to take a connection; of several the next one is tried then
ANSWER: Final = 2.0  # seconds for one answer, also to the question whether the connection that hears is still there, ...
HEARS: Final = 5.0  # ... which is asked after so many seconds of silence
SILENT: Final = "it does not answer"
FAILURES: Final = (RedisError, OSError, EOFError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Store:
    """One store, by its URL."""

    def __init__(self, url: str, note: Callable[[str], None] = lambda text: None) -> None:
        """`note` is told in a sentence when the store is lost, and when it is back.  Raises ConfigurationError."""
        self._url = parse(url)
        self._note = note
        self._is_lost = False
        self._nodes: list[TCPLocation] = []  # of a cluster, as it was last seen: those that the URL names may be gone

    async def run(self, feed: Feed) -> None:
        """Carry out orders for ever."""
        while True:
            error = await self._session(feed)
            if not self._is_lost:
                self._is_lost = True
                self._note(f"The fleet's store cannot be used: {error}. Who meets on one server still does.")
            feed.finish(None)
            await trio.sleep(AGAIN)
            # Whoever waits for the store must hear that it is not there, also while it cannot even be connected to.
            with trio.move_on_after(0.0):
                await feed.orders()

    async def ask(self, order: Order) -> Entries:
        """Carry out one order.  Raises ServerUnreachableError."""
        reason = SILENT
        with trio.move_on_after(OPENING):
            try:
                async with _open(self._url, self._nodes) as client:
                    return (await carry_out(client, [order]))[0]
            except* FAILURES as errors:
                reason = _reason(errors)
        raise ServerUnreachableError(f"The fleet's store cannot be used: {reason}.")

    async def _session(self, feed: Feed) -> str:
        """Until something goes wrong; why, for a person."""
        reason = SILENT
        with trio.CancelScope(deadline=trio.current_time() + OPENING) as scope:
            try:
                async with trio.open_nursery() as waiting:
                    opening = trio.CancelScope()
                    waiting.start_soon(_say_no, feed, opening)
                    async with _open(self._url, self._nodes) as client, client.pubsub(
                        channels=list(feed.channels), ignore_subscribe_messages=True, retry_policy=NoRetryPolicy(),
                        subscription_timeout=ANSWER, max_idle_seconds=HEARS,
                    ) as pubsub, trio.open_nursery() as nursery:  # fmt: skip
                        await carry_out(client, [Look(SERVERS)])  # now this connection stands, too
                        opening.cancel()
                        scope.deadline = math.inf
                        nursery.start_soon(_listen, pubsub, feed)
                        await self._carry(client, feed, scope)
            except* FAILURES as errors:
                reason = _reason(errors)
            except* Exception as errors:  # a defect of the library, or of ours: the store is lost, the server goes on
                reason = f"unforeseen, please report it: {_first(errors)!r}"
        return reason

    async def _carry(self, client: Any, feed: Feed, scope: trio.CancelScope) -> None:
        """One batch after the other."""
        while True:
            orders = await feed.orders()
            scope.deadline = trio.current_time() + PATIENCE
            results = await carry_out(client, orders)
            scope.deadline = math.inf
            if self._is_lost:
                self._is_lost = False
                self._note("The fleet's store answers again.")
            feed.finish(results)


async def _say_no(feed: Feed, opening: trio.CancelScope) -> None:
    with opening:
        while True:
            await trio.sleep(PATIENCE)
            feed.finish(None)
            with trio.move_on_after(0.0):
                await feed.orders()


async def _listen(pubsub: Any, feed: Feed) -> None:
    while True:
        message = await pubsub.get_message()
        if message is not None and message["type"] == "message":
            feed.hear(_bytes(message["channel"]), _bytes(message["data"]))


@asynccontextmanager
async def _open(url: StoreUrl, nodes: list[TCPLocation]) -> AsyncIterator[Any]:
    """A client that neither retries nor waits for ever: both are our core's business.

    `nodes` of a cluster are tried, too, and are those that it has afterwards.
    """
    times: dict[str, Any] = {"connect_timeout": CONNECTING, "stream_timeout": ANSWER, "ssl_context": url.tls}
    options: dict[str, Any] = {**times, "username": url.user, "password": url.password, "retry_policy": NoRetryPolicy()}
    places = [TCPLocation(host, port) for host, port in url.hosts]
    client: Any
    match url.kind:
        case Kind.CLUSTER:
            # To ask whether all slots are served takes a right that few accounts have; the orders will tell.
            places = list(dict.fromkeys([*places, *nodes]))
            client = coredis.RedisCluster(startup_nodes=places, skip_full_coverage_check=True, **options)
            async with client:
                nodes[:] = (TCPLocation(each.host, each.port) for each in client.connection_pool.cluster_layout.nodes)
                yield client
        case Kind.SENTINELS:
            theirs = {**times, "password": url.sentinel_password}
            sentinels: Any = coredis.Sentinel(places, sentinel_kwargs=theirs, db=url.db, **options)
            async with sentinels, sentinels.primary_for(url.name) as client:
                yield client
        case Kind.ALONE:
            where = {"unix_socket_path": url.path} if url.path else {"host": places[0].host, "port": places[0].port}
            client = coredis.Redis(db=url.db, **where, **options)
            async with client:
                yield client


async def carry_out(client: Any, orders: Sequence[Order]) -> list[Entries]:
    """One after the other; the entries of those that look.  Raises RedisError, OSError."""
    async with client.pipeline(transaction=False) as pipe:
        if isinstance(client, coredis.RedisCluster) and isinstance(orders[0], Tell):
            pipe.hlen(SERVERS)  # what has no key goes where the command before it goes: there has to be one
        wanted: list[Any] = []
        for order in orders:
            match order:
                case Put(key, field, value, lifetime):
                    pipe.hset(key, {field: value})
                    pipe.expire(key, max(1, math.ceil(lifetime)))
                    wanted.append(pipe.hgetall(key))
                case Look(key):
                    wanted.append(pipe.hgetall(key))
                case Drop(key, field):
                    pipe.hdel(key, [field])
                    wanted.append(None)
                case Tell(channel, data):
                    pipe.publish(channel, data)
                    wanted.append(None)
    return [{} if each is None else await each for each in wanted]


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _reason(errors: BaseExceptionGroup[Any]) -> str:
    """The first of them, for a person; a store's own words may quote what was sent, but never the password."""
    error = _first(errors)
    if isinstance(error, AuthenticationError):
        return "it does not accept our name or password"
    text = str(error).strip().rstrip(".")
    return text.splitlines()[0][:200] if text else SILENT
