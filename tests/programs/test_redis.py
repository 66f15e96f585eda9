"""Redis: many small commands, a large value, and a subscriber that hears after a change of path and after a long silence."""

from __future__ import annotations

import time

import pytest

from tests.netns.lab import eventually
from tests.netns.programs import Pair, Program, checksum, random_file
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = needs("redis-server", "redis-cli")

CLI = ("redis-cli", "-p", "16379")
AT_HOME = ("redis-cli", "-p", "6379")
VALUE = 8_000_000
COMMANDS = 20_000


def begin(homes: Homes) -> Pair:
    words = ["redis-server", "--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", str(homes.folder)]
    homes.serve("redis", words, 6379)
    return homes.link("6379", forward=["16379:6379"])


def subscribe(homes: Homes) -> Program:
    subscriber = homes.start("subscriber", "stdbuf", "-oL", *CLI, "subscribe", "news")
    subscriber.wait_said("subscribe\nnews")
    return subscriber


def publish(homes: Homes, subscriber: Program, words: str) -> None:
    assert homes.home.run(*AT_HOME, "publish", "news", words).stdout == "1\n"
    subscriber.wait_said(words)


def test_values_and_commands_arrive_whole(homes: Homes) -> None:
    begin(homes)
    given, taken = homes.folder / "given", homes.folder / "taken"
    digest = random_file(given, VALUE)
    assert homes.use("sh", "-c", f'{" ".join(CLI)} -x set big <"$1"', "_", given).stdout == "OK\n"
    homes.use("sh", "-c", f'{" ".join(CLI)} --raw get big | head -c {VALUE} >"$1"', "_", taken)
    assert checksum(taken) == digest
    commands = "".join(f"SET key:{number} {number * number}\r\n" for number in range(COMMANDS))
    assert f"errors: 0, replies: {COMMANDS}" in homes.use(*CLI, "--pipe", stdin=commands).stdout
    assert homes.home.run(*AT_HOME, "get", f"key:{COMMANDS - 1}").stdout == f"{(COMMANDS - 1) ** 2}\n"


def test_a_subscriber_hears_after_its_router_forgot_and_is_told_when_it_is_cut_off(homes: Homes) -> None:
    begin(homes)
    subscriber = subscribe(homes)
    publish(homes, subscriber, "before")
    homes.rebind()
    publish(homes, subscriber, "after")
    assert homes.use(*CLI, "client", "kill", "type", "pubsub").stdout == "1\n"
    eventually("nobody listens", lambda: homes.home.run(*AT_HOME, "publish", "news", "late").stdout == "0\n", SLOW_S)
    subscriber.wait(SLOW_S)
    assert "Server closed the connection" in subscriber.said()


@pytest.mark.nightly
def test_a_benchmark_of_many_clients_ends_without_an_error(homes: Homes) -> None:
    begin(homes)
    words = ["redis-benchmark", "-p", "16379", "-c", "50", "-n", "20000", "-t", "set,get,lpush,lrange_100", "--csv"]
    said = homes.use(*words)
    assert [line.partition(",")[0] for line in said.stdout.splitlines() if line.startswith('"')][1:] == [
        '"SET"', '"GET"', '"LPUSH"', '"LPUSH (needed to benchmark LRANGE)"', '"LRANGE_100 (first 100 elements)"',
    ]  # fmt: skip
    assert "rror" not in said.stdout + said.stderr


@pytest.mark.nightly
@pytest.mark.time_limit(240)
def test_a_subscriber_hears_after_a_silence_and_after_a_restart_of_the_server(homes: Homes) -> None:
    begin(homes)
    subscriber = subscribe(homes)
    time.sleep(75)
    publish(homes, subscriber, "after the silence")
    homes.restart_server()
    publish(homes, subscriber, "after the restart")
