"""A TCP forward over the PyPI package `iroh`, as dumbpipe makes it: for scripts/bench only, run by its own interpreter.

    forward_iroh.py listen ADDRESS:PORT TARGET_PORT        prints the endpoint's id
    forward_iroh.py dial ID ADDRESS:PORT LOCAL_PORT...     the n-th local port leads to TARGET_PORT + n
The package's generated code copies what is written byte by byte in Python; that loop is replaced, so that iroh is measured
and not the loop.  `--as-it-is` leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
from functools import partial
from typing import Any

from iroh import iroh_ffi  # type: ignore[import-not-found,unused-ignore]

ALPN = b"ptunnel-bench/1"
PIECE = 256 * 1024


def _write(self: Any, value: bytes) -> None:
    with self._reserve(len(value)):
        ctypes.memmove(ctypes.addressof(self.rbuf.data.contents) + self.rbuf.len, bytes(value), len(value))


async def inward(reader: asyncio.StreamReader, send: Any) -> None:
    while data := await reader.read(PIECE):
        await send.write_all(data)
    await send.finish()


async def outward(receive: Any, writer: asyncio.StreamWriter) -> None:
    while data := await receive.read(PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def join(stream: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(iroh_ffi.IrohError, OSError):
        await asyncio.gather(inward(reader, stream.send()), outward(stream.recv(), writer))
    writer.close()


async def listen(where: str, target: int) -> None:
    options = iroh_ffi.EndpointOptions(preset=iroh_ffi.preset_minimal(), bind_addr=where, alpns=[ALPN])
    endpoint = await iroh_ffi.Endpoint.bind(options)
    print(endpoint.id(), flush=True)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(stream: Any) -> None:
        number = (await stream.recv().read_exact(1))[0]
        await join(stream, *await asyncio.open_connection("127.0.0.1", target + number, limit=PIECE))

    while True:
        incoming = await endpoint.accept_next()
        connection = await (await incoming.accept()).connect()
        with contextlib.suppress(iroh_ffi.IrohError):
            while True:
                task = asyncio.create_task(serve(await connection.accept_bi()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)


async def dial(identity: str, where: str, ports: list[int]) -> None:
    options = iroh_ffi.EndpointOptions(preset=iroh_ffi.preset_minimal(), alpns=[ALPN])
    endpoint = await iroh_ffi.Endpoint.bind(options)
    address = iroh_ffi.EndpointAddr(iroh_ffi.EndpointId.from_string(identity), None, [where])
    connection = await endpoint.connect(address, ALPN)

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = await connection.open_bi()
        await stream.send().write_all(bytes([number]))
        await join(stream, reader, writer)

    for number, port in enumerate(ports):
        await asyncio.start_server(partial(serve, number), "127.0.0.1", port, limit=PIECE)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main(words: list[str]) -> None:
    if "--as-it-is" in words:
        words.remove("--as-it-is")
    else:
        iroh_ffi._UniffiRustBufferBuilder.write = _write
    if words[0] == "listen":
        asyncio.run(listen(words[1], int(words[2])))
    else:
        asyncio.run(dial(words[1], words[2], [int(word) for word in words[3:]]))


if __name__ == "__main__":
    main(sys.argv[1:])
