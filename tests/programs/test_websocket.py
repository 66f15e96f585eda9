"""WebSocket (RFC 6455): large messages, pings, and a close that says why."""

from __future__ import annotations

import subprocess

from tests.netns.programs import Program
from tests.programs.homes import Homes, needs

PYTHON = "/usr/bin/python3"  # Debian's, which has Debian's websockets
pytestmark = needs(PYTHON, "/usr/lib/python3/dist-packages/websockets")

SERVER = """
import asyncio, websockets

async def serve(connection):
    async for message in connection:
        if message == "enough":
            await connection.close(4001, "you said so")
        else:
            await connection.send(message)

async def main():
    async with websockets.serve(serve, "127.0.0.1", 8765, max_size=None):
        await asyncio.Future()

asyncio.run(main())
"""
CLIENT = """
import asyncio, os, websockets

async def step():
    return (await asyncio.get_running_loop().run_in_executor(None, input)).strip()

async def main():
    async with websockets.connect("ws://127.0.0.1:18765/", max_size=None, ping_interval=1, ping_timeout=60) as connection:
        print("open", flush=True)
        while (word := await step()) != "enough":
            for message in (word, "\\u2713" * 700_000, os.urandom(3_000_000), b""):
                await connection.send(message)
                assert await connection.recv() == message
            await asyncio.wait_for(await connection.ping(word), 60)
            print("echoed", word, flush=True)
        await connection.send("enough")
        await connection.wait_closed()
        print("closed", connection.close_code, connection.close_reason, flush=True)

asyncio.run(main())
"""


def tell(client: Program, word: str) -> None:
    assert client.process.stdin is not None
    client.process.stdin.write(f"{word}\n")
    client.process.stdin.flush()


def test_messages_go_both_ways_over_a_change_of_path_until_one_side_closes(homes: Homes) -> None:
    homes.serve("websockets", [PYTHON, "-c", SERVER], 8765)
    homes.link("8765", forward=["18765:8765"])
    client = homes.start("client", PYTHON, "-c", CLIENT, stdin=subprocess.PIPE)
    client.wait_said("open")
    for word, happening in (("first", homes.rebind), ("second", homes.restart_server), ("third", lambda: None)):
        tell(client, word)
        client.wait_said(f"echoed {word}", 60)
        happening()
    tell(client, "enough")
    client.wait_said("closed 4001 you said so", 60)
    assert client.wait(20) == 0
