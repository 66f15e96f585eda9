"""Carries out a fleet's orders in a Redis or Valkey: alone, in a cluster, or found by sentinels.

One connection carries the orders, a batch at a time, and one hears the channels.  Whatever goes wrong with either, both are
opened anew; the core decides what that means (tunnel.rendezvous.fleet.directory).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import coredis
import trio
from coredis.exceptions import AuthenticationError, RedisError
from coredis.retry import NoRetryPolicy

from tunnel.errors import ConfigurationError
from tunnel.rendezvous.fleet.directory import PATIENCE, Drop, Entries, Look, Order, Put, Tell
from tunnel.shell.fleet import Feed

logging.getLogger("coredis").setLevel(logging.CRITICAL)  # it writes tracebacks of what we foresee

AGAIN: Final = 0.5  # seconds before the store is tried again
SENTINEL_PORT: Final = 26_379
FAILURES: Final = (RedisError, OSError, EOFError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
_SCHEMES: Final = re.compile(r"(redis|rediss|unix|redis\+cluster|rediss\+cluster|redis\+sentinel)\Z")


class Store:
    """One store, by its URL."""

    def __init__(self, url: str, note: Callable[[str], None] = lambda text: None) -> None:
        """`note` is told in a sentence when the store is lost, and when it is back.  Raises ConfigurationError."""
        scheme = urlsplit(url).scheme
        if not _SCHEMES.match(scheme):
            raise ConfigurationError(
                "--fleet needs the URL of a store: redis://HOST/, rediss://HOST/ (TLS), unix:///PATH, redis+cluster://HOST/ or "
                "redis+sentinel://HOST,HOST/NAME."
            )
        self._url = url
        self._scheme = scheme
        self._note = note
        self._is_lost = False

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

    async def ask(self, order: Order) -> Entries | None:
        """Carry out one order; None when the store does not answer."""
        with trio.move_on_after(PATIENCE):
            try:
                async with self._open() as client:
                    return (await carry_out(client, [order]))[0]
            except* FAILURES:
                pass
        return None

    async def _session(self, feed: Feed) -> str:
        """Until something goes wrong; why, for a person."""
        reason = "it does not answer"
        with trio.CancelScope(deadline=trio.current_time() + PATIENCE) as scope:
            try:
                async with self._open() as client, client.pubsub(
                    channels=list(feed.channels), ignore_subscribe_messages=True, retry_policy=NoRetryPolicy()
                ) as pubsub, trio.open_nursery() as nursery:  # fmt: skip
                    scope.deadline = math.inf
                    nursery.start_soon(self._listen, pubsub, feed)
                    while True:
                        orders = await feed.orders()
                        scope.deadline = trio.current_time() + PATIENCE
                        results = await carry_out(client, orders)
                        scope.deadline = math.inf
                        if self._is_lost:
                            self._is_lost = False
                            self._note("The fleet's store answers again.")
                        feed.finish(results)
            except* FAILURES as errors:
                reason = _reason(errors)
        return reason

    async def _listen(self, pubsub: Any, feed: Feed) -> None:
        while True:
            message = await pubsub.get_message()
            if message is not None and message["type"] == "message":
                feed.hear(_bytes(message["channel"]), _bytes(message["data"]))

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Any]:
        """A client that neither retries nor waits for ever: both are our core's business."""
        options: dict[str, Any] = {"retry_policy": NoRetryPolicy(), "decode_components": True, "connect_timeout": PATIENCE}
        parts = urlsplit(self._url)
        if self._scheme.endswith("+cluster"):
            url = urlunsplit(parts._replace(scheme=self._scheme.removesuffix("+cluster")))
            async with coredis.RedisCluster.from_url(url, **options) as cluster:
                yield cluster
        elif self._scheme == "redis+sentinel":
            async with _sentinel(self._url) as (sentinel, name), sentinel.primary_for(name) as primary:
                yield primary
        else:
            async with coredis.Redis.from_url(self._url, **options) as client:
                yield client


@asynccontextmanager
async def _sentinel(url: str) -> AsyncIterator[tuple[Any, str]]:
    """redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT].../NAME"""
    parts = urlsplit(url)
    users, _, hosts = parts.netloc.rpartition("@")
    user, _, password = users.partition(":")
    parted = (each.partition(":") for each in hosts.split(","))
    places = [(host, int(port) if port else SENTINEL_PORT) for host, _, port in parted]
    login: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(password) or None}
    sentinel_client: Any = coredis.Sentinel(places, connect_timeout=PATIENCE, **login)
    async with sentinel_client as sentinel:
        yield sentinel, parts.path.strip("/")


async def carry_out(client: Any, orders: Sequence[Order]) -> list[Entries]:
    """One after the other; the entries of those that look.  Raises RedisError, OSError."""
    async with client.pipeline(transaction=False) as pipe:
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


def _reason(errors: BaseExceptionGroup[Any]) -> str:
    """The first of them, for a person; a store's own words may quote what was sent, but never the password."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, AuthenticationError):
        return "it does not accept our name or password"
    text = str(error).strip().rstrip(".")
    return text.splitlines()[0][:200] if text else type(error).__name__
