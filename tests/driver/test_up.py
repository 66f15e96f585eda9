"""`ptunnel up` in this process, over loopback: many peers, one link for each, and changes while it runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio

from tests.driver.meeting import a_server
from tests.driver.ups import (
    PATIENCE,
    acquaint,
    configure,
    echo,
    echoed,
    is_refused,
    local,
    peers_linked,
    remembered,
    states,
    talk,
    until,
)
from tunnel.errors import ConfigurationError, StateError
from tunnel.up.home import up


def asks_for(peer: str, port: int, *, grants: int | None = None) -> str:
    text = f'[[forward]]\npeer = "{peer}"\nlisten = ["0:{port}"]\n'
    return text if grants is None else text + f'[[expose]]\nwhat = ["{grants}"]\nto = ["{peer}"]\n'


async def test_two_homes_with_forwards_to_one_another_share_one_link(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as two:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", asks_for("ben", two, grants=one))
            configure(tmp_path / "ben", asks_for("ann", one, grants=two))
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                for _ in range(2):
                    async with await talk(local(anns, "ben")[0]), await talk(local(bens, "ann")[0]):
                        pass
                    await until(lambda: peers_linked([anns, bens]) == [["ben"], ["ann"]])
                async with await talk(local(anns, "ben")[0]), await talk(local(bens, "ann")[0]):
                    assert peers_linked([anns, bens]) == [["ben"], ["ann"]]
                    assert states(anns) == {"ben": "connected"}


async def test_forwards_come_and_go_while_another_one_is_in_use(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben", cleo=tmp_path / "cleo")
            configure(tmp_path / "ann", asks_for("ben", one))
            for other in ("ben", "cleo"):
                configure(tmp_path / other, f'[[expose]]\nwhat = ["{one}"]\nto = ["*"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"), up(tmp_path / "cleo"):
                [port] = local(anns, "ben")
                async with await talk(port) as stream:
                    link = anns.links[0]
                    added = await anns.add_forward("cleo", f"0:{one}")
                    async with await talk(local(anns, "cleo")[0]) as beside:
                        await echoed(stream)
                        await anns.remove_forward("cleo", f"0:{one}")
                        with contextlib.suppress(trio.BrokenResourceError):
                            assert await beside.receive_some() == b""
                    await anns.add_forward("ben", f"0:{one}/tcp")  # the same, written otherwise
                    assert len(local(anns, "ben")) == 1
                    assert await is_refused(int(added["forwards"][0]["bind"].rpartition(":")[2]))
                    await echoed(stream)
                    assert anns.links[0] is link


async def test_a_reload_touches_what_has_changed_and_nothing_else(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as two:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", asks_for("ben", one))
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["{one}", "{two}"]\nto = ["ann"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                [first] = local(anns, "ben")
                async with await talk(first) as stream:
                    configure(tmp_path / "ann", asks_for("ben", one) + asks_for("ben", two))
                    assert await anns.reload() == {"added": 1, "removed": 0}
                    assert first in local(anns, "ben")
                    [second] = set(local(anns, "ben")) - {first}
                    async with await talk(second) as other:
                        configure(tmp_path / "ben", f'[[expose]]\nwhat = "{one}"\nto = ["ann"]\n')
                        await bens.reload()
                        with contextlib.suppress(trio.BrokenResourceError):
                            assert await other.receive_some() == b""
                    await echoed(stream)


async def test_a_reload_that_cannot_be_read_changes_nothing_and_names_the_line(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", asks_for("ben", one))
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["{one}"]\nto = ["ann"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben"):
                [port] = local(anns, "ben")
                async with await talk(port) as stream:
                    for text, place in (
                        ('[[forward]]\npeer = "ben"\nlisten = ["99999:1"]\n', r"config\.toml:3: listen"),
                        ('[[forward]]\npeer = "ben"\n', r"config\.toml:1: .*listen"),
                        ('[[forward]]\npeer = 1\nlisten = "1"\n', r"config\.toml:2: peer"),
                        ('\n[[forward]]\npeer = "ben"\nlisten = "1"\nlistens = "2"\n', r"config\.toml:5: unknown key 'listens'"),
                        ("[[forward\n", "line 1"),
                    ):
                        configure(tmp_path / "ann", text)
                        with pytest.raises((ConfigurationError, StateError), match=place):
                            await anns.reload()
                        await echoed(stream)
                        assert len(local(anns, "ben")) == 1


async def test_a_grant_that_is_taken_back_ends_what_is_open_of_it(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one, echo() as two:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben")
            configure(tmp_path / "ann", asks_for("ben", one) + asks_for("ben", two))
            configure(tmp_path / "ben", f'[[expose]]\nwhat = ["{one}"]\nto = ["ann"]\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                first, second = local(anns, "ben")
                async with await talk(first) as by_file:
                    granted = await bens.grant("ann", [f"{two}"])
                    assert set(granted["grants"]) == {f"tcp/{one}", f"tcp/{two}"}
                    assert remembered(tmp_path / "ben", "ann") == [f"tcp/{two}"]
                    async with await talk(second) as given:
                        revoked = await bens.revoke("ann", [f"{two}"])
                        assert (revoked["revoked"], revoked["grants"]) == ([f"tcp/{two}"], [f"tcp/{one}"])
                        with contextlib.suppress(trio.BrokenResourceError):
                            assert await given.receive_some() == b""
                    await echoed(by_file)
                    assert (await bens.revoke("ann"))["again"]
                    with contextlib.suppress(trio.BrokenResourceError):
                        assert await by_file.receive_some() == b""
                    assert await is_refused(first)
                    with pytest.raises(ConfigurationError, match="is not shared anyway"):
                        await bens.revoke("ann", [f"{two}"])


async def test_a_code_pairs_two_running_homes(tmp_path: Path) -> None:
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server, echo() as one:
            configure(tmp_path / "ann", f'server = "{server}"\nname = "ann"\n')
            configure(tmp_path / "ben", f'server = "{server}"\nname = "ben"\n')
            async with up(tmp_path / "ann") as anns, up(tmp_path / "ben") as bens:
                code = await bens.invite([f"{one}"])
                assert await anns.join(code, [f"0:{one}"]) == "ben"
                async with await talk(local(anns, "ben")[0]):
                    assert remembered(tmp_path / "ben", "ann") == [f"tcp/{one}"]
                assert await bens.invite([]) != code


async def test_what_is_saved_keeps_the_comments_and_the_order_of_the_file(tmp_path: Path) -> None:
    text = '# mine\nname = "ann"  # so we are called\n\n[[forward]]  # work\npeer = "ben"\nlisten = [\n  "0:1",  # web\n]\n'
    with trio.fail_after(3 * PATIENCE):
        async with a_server() as server:
            acquaint(server, ann=tmp_path / "ann", ben=tmp_path / "ben", cleo=tmp_path / "cleo")
            configure(tmp_path / "ann", text)
            async with up(tmp_path / "ann") as anns:
                await anns.add_forward("ben", "0:2", saves=True)
                await anns.add_forward("cleo", "0:3", saves=True)
                await anns.grant("cleo", ["22"], saves=True)
                after = (tmp_path / "ann" / "config.toml").read_text()
                for comment in ("# mine", "# so we are called", "# work", "# web"):
                    assert comment in after
                assert remembered(tmp_path / "ann", "cleo") == []
                assert await anns.reload() == {"added": 0, "removed": 0}
                await anns.remove_forward("ben", "0:2", saves=True)
                await anns.remove_forward("cleo", "0:3", saves=True)
                await anns.revoke("cleo", saves=True)
                assert (tmp_path / "ann" / "config.toml").read_text().strip() == text.strip()
