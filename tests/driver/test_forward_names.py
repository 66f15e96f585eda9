"""NAME=HOST: whoever answers for the name may not lead the peer to this machine, its link, or the inside of a cloud."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.driver.fake_link import linked_pair
from tunnel.ports import names
from tunnel.ports.names import MisledError, resolve
from tunnel.ports.open import Open, encode, read_message
from tunnel.ports.serve import Exposed
from tunnel.shell.stream import StreamCode, StreamResetError

OURS = "198.51.100.9"


class Answers(trio.abc.HostnameResolver):
    """A name server whose answers are ours to change."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_more: Any) -> Any:
        self.asked.append(host.decode() if isinstance(host, bytes) else host)
        families = [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in self.found]
        return [(family, socket.SOCK_STREAM, 6, "", (each, port)) for family, each in families]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr(names, "own_addresses", lambda: ["127.0.0.1", "::1", OURS, "2001:db8::9", "fe80::9"])
    monkeypatch.setattr(socket, "gethostname", lambda: "attic.example.net")
    return Answers()


async def led(answers: Answers, host: str, *found: str) -> list[str]:
    answers.found = list(found)
    trio.socket.set_custom_hostname_resolver(answers)
    return [address[0] for _family, address in await resolve(host, 80)]


HIDDEN = [
    *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    *("169.254.169.254", "169.254.1.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "::ffff:169.254.169.254"),
    *(OURS, "2001:db8::9", f"::ffff:{OURS}", "224.0.0.1", "255.255.255.255", "ff02::1"),
]


@pytest.mark.parametrize("address", HIDDEN)
async def test_a_name_does_not_lead_to_this_machine_or_to_what_is_nobodys(address: str, answers: Answers) -> None:
    with pytest.raises(MisledError) as caught:
        await led(answers, "nas.example.net", address)
    assert "The name nas.example.net leads to" in caught.value.sentence
    assert await led(answers, "nas.example.net", address, "192.168.1.5") == ["192.168.1.5"], "the rest of the answer counts"


@pytest.mark.parametrize("address", ["192.168.1.5", "10.0.0.1", "172.17.0.2", "203.0.113.7", "fd12::5", "2001:db8::5"])
async def test_a_name_leads_to_any_other_machine(address: str, answers: Answers) -> None:
    assert await led(answers, "nas", address) == [address]


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("LOCALHOST.", ["127.0.0.1", "::1"]),
        ("web.localhost", ["127.0.0.1", "::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("169.254.169.254", ["169.254.169.254"]),
        (OURS, [OURS]),
    ],
)
async def test_what_the_person_wrote_itself_is_reached_and_nobody_is_asked(host: str, found: list[str], answers: Answers) -> None:
    assert await led(answers, host, "203.0.113.66") == found
    assert answers.asked == []


async def test_an_address_with_a_zone_is_one(answers: Answers) -> None:
    found = await led(answers, "fe80::1%lo", "203.0.113.66")
    assert ([each.partition("%")[0] for each in found], answers.asked) == (["fe80::1"], [])


@pytest.mark.parametrize("host", ["attic", "ATTIC.example.net", "attic.example.net."])
async def test_this_machine_by_its_own_name_is_meant_and_a_cloud_is_not(host: str, answers: Answers) -> None:
    assert await led(answers, host, "127.0.1.1", OURS, "169.254.169.254") == ["127.0.1.1", OURS]
    with pytest.raises(MisledError):
        await led(answers, host, "169.254.169.254")


async def test_a_name_without_an_address_is_unknown(answers: Answers) -> None:
    with pytest.raises(socket.gaierror):
        await led(answers, "nas")


@asynccontextmanager
async def exposed(places: dict[Any, tuple[str, int]], notices: list[str]) -> AsyncIterator[tuple[Any, Exposed]]:
    near, far = linked_pair()
    one = Exposed(far, lambda protocol, target: places.get((protocol, target)), notice=notices.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, one.handle)
        with trio.fail_after(10):
            yield near, one
        nursery.cancel_scope.cancel()


async def opened(near: Any, kind: str) -> bool | int:
    """True, or the code with which it was refused."""
    stream = await near.open_stream(encode(Open(kind, "nas", near.flows.allocate())))  # type: ignore[arg-type]
    try:
        await read_message(stream)
    except StreamResetError as error:
        return error.code
    await stream.aclose()
    return True


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_a_name_that_is_bound_anew_between_two_streams_opens_no_second_one(
    kind: str, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer names a service of this machine, which was never granted; the first one passes for another's."""
    monkeypatch.setattr(names, "is_loopback", lambda host: str(host) == "127.0.0.1")
    trio.socket.set_custom_hostname_resolver(answers)
    notices: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        if kind == "tcp":
            listener.listen()
        port = listener.getsockname()[1]
        async with exposed({(kind, "nas"): ("nas.example.net", port)}, notices) as (near, one):
            answers.found = ["127.0.0.2"]
            assert await opened(near, kind) is True
            answers.found = ["127.0.0.1"]
            assert await opened(near, kind) == StreamCode.UNREACHABLE
            assert one.counters.misled == 1
            assert notices == [
                "The name nas.example.net leads to 127.0.0.1, an address of this machine or a reserved one, so nothing was "
                f"connected: if that is meant, share the address, as in NAME=127.0.0.1:{port}."
            ]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "the name nas.example.net is unknown here."),
        (
            socket.gaierror(socket.EAI_AGAIN, "try again"),
            "nobody tells where the name nas.example.net leads, as no name server (DNS) answers.",
        ),
        (
            PermissionError(errno.EPERM, "no"),
            "a rule of this machine, as of its firewall, forbids what goes to nas.example.net.",
        ),
    ],
)
async def test_who_shares_a_name_that_leads_nowhere_is_told(kind: str, error: OSError, sentence: str) -> None:
    """Whoever asked hears that the machine is not reached, and cannot help."""

    class Nobody(Answers):
        async def getaddrinfo(self, host: Any, port: Any, *_more: Any) -> Any:
            await trio.lowlevel.checkpoint()
            raise error

    trio.socket.set_custom_hostname_resolver(Nobody())
    notices: list[str] = []
    with trio.fail_after(20):
        async with exposed({(kind, "nas"): ("nas.example.net", 80)}, notices) as (near, _one):
            assert await opened(near, kind) in (StreamCode.UNREACHABLE, StreamCode.INTERNAL)
    [told] = notices
    assert told.endswith(f"{kind}/nas: {sentence}")


class Dead(Answers):
    """One whose server for the zone `dead` never answers, as threads that wait for it; the others are at once."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = threading.Event()

    async def getaddrinfo(self, host: Any, port: Any, *_more: Any) -> Any:
        if host in ("dead", b"dead"):
            self.asked.append("dead")
            await trio.to_thread.run_sync(self.answer.wait, 60)
        else:
            await trio.to_thread.run_sync(lambda: None)  # of the same pool as getaddrinfo's
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


async def test_many_connections_to_one_dead_name_keep_no_other_name_waiting(answers: Answers) -> None:
    """Each lookup is a thread, of which there are 40."""
    dead = Dead()
    trio.socket.set_custom_hostname_resolver(dead)
    found: list[int] = []

    async def ask(port: int) -> None:
        found.extend(address[1] for _family, address in await resolve("dead", port))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for port in range(1, 201):
                nursery.start_soon(ask, port)
            while not dead.asked:
                await trio.lowlevel.checkpoint()
            assert await resolve("nas.example", 445) == [(socket.AF_INET, ("192.0.2.1", 445))]
            assert not found
            with trio.move_on_after(0.01):  # one that gives up takes nothing from those who wait on
                await ask(1_000)
            dead.answer.set()
    assert sorted(found) == list(range(1, 201))
    assert dead.asked == ["dead"]


async def test_a_name_that_is_unknown_is_that_to_all_who_asked_and_is_asked_for_again(answers: Answers) -> None:
    class Nobody(Answers):
        async def getaddrinfo(self, host: Any, port: Any, *_more: Any) -> Any:
            self.asked.append(host)
            await trio.lowlevel.checkpoint()
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

    nobody = Nobody()
    trio.socket.set_custom_hostname_resolver(nobody)
    errors: list[Exception] = []

    async def ask() -> None:
        with pytest.raises(socket.gaierror) as raised:
            await resolve("nobody.example", 80)
        errors.append(raised.value)

    for times in (1, 2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert (len(errors), len(nobody.asked)) == (3 * times, times)
