"""`ptunnel up` with more than ports: SOCKS doors, ports at which the peer listens, rates, and sockets of a service manager."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
import trio

from tests.driver.meeting import a_server
from tests.driver.ups import PATIENCE, acquaint, configure, echo, echoed, is_refused, local, talk, until
from tunnel.errors import ConfigurationError
from tunnel.ports.passed import Passed
from tunnel.up.home import Home, up


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        return int(placeholder.getsockname()[1])


async def by_socks(door: int, port: int) -> trio.SocketStream:
    """A connection by that door to a port of the other side (RFC 1928)."""
    stream = await trio.open_tcp_stream("127.0.0.1", door)
    await stream.send_all(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        answer += await stream.receive_some(12 - len(answer))
    assert answer[:4] == b"\x05\x00\x05\x00", answer
    return stream


def listening(home: Home) -> list[bool]:
    return [each["listening"] for each in home.details()["remotes"]]


async def test_a_socks_door_and_a_port_of_the_peer_come_with_the_file_and_go_with_it(tmp_path: Path) -> None:
    there = free_port()
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as here:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            text = f'[[forward]]\npeer = "ben"\nsocks = "0"\nremote = ["{there}:{here}"]\n'
            configure(tmp_path / "ann", text)
            shares = f'what = ["net/127.0.0.1:{one}", "remote/{there}"]'
            configure(tmp_path / "ben", f'[[expose]]\n{shares}\nto = ["ann"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"):
                [door] = local(anns, "ben")
                assert anns.remotes() == [{"bind": f"127.0.0.1:{there}", "target": f"127.0.0.1:{here}", "peer": "ben"}]
                async with await by_socks(door, one) as stream:
                    await echoed(stream)
                    await until(lambda: listening(anns) == [True])
                    async with await talk(there) as back:
                        configure(tmp_path / "ann", text.replace(f"{there}:{here}", "x"))
                        with pytest.raises(ConfigurationError, match=r"config\.toml:4: remote: .x. .*is no port"):
                            await anns.reload()
                        await echoed(back)
                        configure(tmp_path / "ann", '[[forward]]\npeer = "ben"\nsocks = "0"\n')
                        assert await anns.reload() == {"added": 0, "removed": 1}
                        with contextlib.suppress(trio.BrokenResourceError):
                            assert await back.receive_some() == b""
                    assert await is_refused(there)
                    await echoed(stream)


async def test_they_are_added_and_removed_while_it_runs_and_saved_under_their_keys(tmp_path: Path) -> None:
    there = free_port()
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as here:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", '# mine\n[[forward]]\npeer = "ben"\nlisten = "0:1"\n')
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["remote/{there}"]\nto = ["ann"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"):
                added = await anns.add_forward("ben", f"remote:{there}:{here}", saves=True)
                assert (added["forwards"], len(added["remotes"])) == ([], 1)
                [opened] = (await anns.add_forward("ben", "socks:0", saves=True))["forwards"]
                assert opened["target"] == "socks"
                await until(lambda: listening(anns) == [True])
                async with await talk(there):
                    pass
                with pytest.raises(ConfigurationError, match="is to listen at"):
                    await anns.add_forward("ben", f"remote:{there}:1")
                after = (tmp_path / "ann" / "config.toml").read_text()
                assert f'remote = ["{there}:{here}"]' in after
                assert 'socks = ["0"]' in after
                assert await anns.reload() == {"added": 0, "removed": 0}
                await anns.remove_forward("ben", f"remote:{there}:{here}", saves=True)
                await anns.remove_forward("ben", "socks:0", saves=True)
                assert (
                    tmp_path / "ann" / "config.toml"
                ).read_text().strip() == '# mine\n[[forward]]\npeer = "ben"\nlisten = "0:1"'
                await until(lambda: not listening(anns))


async def test_the_rate_of_a_table_is_of_all_of_it_together_and_that_of_a_grant_of_each_peer(tmp_path: Path) -> None:
    """The limits themselves are tested with their clock; here it is whose they are."""
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as two:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben", cleo=tmp_path / "cleo")
            forward = f'[[forward]]\npeer = "ben"\nlisten = ["0:{one}", "0:{two}"]\nrate = "50M"\n'
            configure(tmp_path / "ann", forward + f'[[forward]]\npeer = "ben"\nlisten = ["0:{one}/tcp"]\nrate = "60M"\n')
            shares = f'[[expose]]\nwhat = "{one}"\nto = "*"\nrate = "10M"\n[[expose]]\nwhat = ["{one}", "{two}"]\nto = "ann"\n'
            configure(tmp_path / "ben", shares)
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                ports = local(anns, "ben")
                for port in ports:
                    async with await talk(port):
                        pass
                limits = [door.limit for door in anns.doors]
                assert limits[0] is limits[1] is not None
                assert limits[2] is not limits[0]
                assert [limit.rate for limit in limits if limit is not None] == [50e6, 50e6, 60e6]
                [link] = bens.links
                from tunnel.ports.open import Listen, Open, Reach

                limit = bens.grants.limit(link, Open("tcp", one))
                assert limit is not None
                assert limit.rate == 10e6
                assert bens.grants.limit(link, Open("tcp", one)) is limit
                assert bens.grants.limit(link, Open("tcp", two)) is None
                assert bens.grants.limit(link, Reach("tcp", "10.0.0.1", 80)) is None
                assert bens.grants.limit(link, Listen("127.0.0.1", 8080)) is None
                await bens.reload()
                assert bens.grants.limit(link, Open("tcp", one)) is limit
                configure(tmp_path / "ben", shares.replace("10M", "20M"))
                await bens.reload()
                limit = bens.grants.limit(link, Open("tcp", one))
                assert limit is not None
                assert limit.rate == 20e6


async def test_the_rate_of_a_table_is_of_what_the_peer_listens_for_too(tmp_path: Path) -> None:
    there = free_port()
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            table = f'[[forward]]\npeer = "ben"\nlisten = "0:{one}"\nremote = "{there}:{one}"\n'
            configure(tmp_path / "ann", table + 'rate = "50M"\n')
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["{one}", "remote/{there}"]\nto = "ann"\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"):
                await until(lambda: listening(anns) == [True])
                async with await talk(there):
                    pass
                bond = anns.bond_of(anns.peer("ben"))
                assert bond is not None
                first, second = anns.doors
                assert first.limit is not None
                assert bond.remotes.limit("127.0.0.1", there) is second.limit is first.limit
                details = anns.details()
                assert [each["rate"] for each in (*details["forwards"], *details["remotes"])] == [50e6, 50e6]
                configure(tmp_path / "ann", table)
                await anns.reload()
                assert bond.remotes.limit("127.0.0.1", there) is None
                await until(lambda: listening(anns) == [True])
                async with await talk(there):
                    pass
                assert "rate" not in anns.details()["remotes"][0]
                assert [each["role"] for each in anns.details()["servers"]] == ["in_use"]


async def test_forwards_use_the_sockets_of_a_service_manager_again_and_again(tmp_path: Path) -> None:
    passed, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    for sock in (passed, other):
        sock.setblocking(False)
    port, unused = (sock.getsockname()[1] for sock in (passed, other))
    said: list[str] = []
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as two:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", f'[[forward]]\npeer = "ben"\nlisten = "{port}:{one}"\n')
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["{one}", "{two}"]\nto = "ann"\n')
            sockets = Passed([passed, other])
            async with up(tmp_path / "ann", passed=sockets, notice=said.append) as anns, up(tmp_path / "ben"):
                assert said == [
                    f"The .socket unit listens at 127.0.0.1:{unused}, and no forward does: what connects there waits."
                ]
                async with await talk(port):
                    pass
                configure(tmp_path / "ann", f'[[forward]]\npeer = "ben"\nlisten = "{port}:{two}"\n')
                await anns.reload()
                async with await talk(port):
                    pass
                await anns.remove_forward("ben", f"{port}:{two}")
                await anns.add_forward("ben", f"{port}:{one}")
                async with await talk(port):
                    pass
    assert (passed.fileno(), other.fileno()) == (-1, -1)
