"""A TCP forward over `aioquic`: for scripts/bench only, run by its own interpreter.

    forward_aioquic.py listen ADDRESS PORT TARGET_PORT
    forward_aioquic.py dial ADDRESS PORT LOCAL_PORT...      the n-th local port leads to TARGET_PORT + n
aioquic buffers without limit what is written; the forward waits while more than BUFFER bytes are not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve  # type: ignore[import-not-found,unused-ignore]
from aioquic.quic.configuration import QuicConfiguration  # type: ignore[import-not-found,unused-ignore]
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ALPN = ["ptunnel-bench"]
PIECE = 64 * 1024
BUFFER = 4 * 1024 * 1024
WINDOW = 16 * 1024 * 1024


def configuration(*, is_client: bool) -> Any:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=ALPN,
        max_data=WINDOW,
        max_stream_data=WINDOW,
        verify_mode=ssl.CERT_NONE,
        idle_timeout=3600.0,
        max_datagram_size=1452,
    )


async def inward(protocol: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    stream_id = writer.get_extra_info("stream_id")
    while data := await reader.read(PIECE):
        writer.write(data)
        while stream_id in protocol._quic._streams:
            sender = protocol._quic._streams[stream_id].sender
            if sender._buffer_stop - sender._buffer_start < BUFFER:
                break
            await asyncio.sleep(0.001)
    writer.write_eof()


async def outward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def join(protocol: Any, quic: Any, local: Any) -> None:
    with contextlib.suppress(OSError, AssertionError):
        await asyncio.gather(inward(protocol, local[0], quic[1]), outward(quic[0], local[1]))
    local[1].close()


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, plain))
    return chain, private


async def listen(address: str, port: int, target: int) -> None:
    settings = configuration(is_client=False)
    with tempfile.TemporaryDirectory() as folder:
        settings.load_cert_chain(*certificate(Path(folder)))
    tasks: set[asyncio.Task[None]] = set()
    protocols: list[Any] = []

    class Protocol(QuicConnectionProtocol):  # type: ignore[misc,unused-ignore]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            protocols.append(self)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = (await reader.readexactly(1))[0]
        local = await asyncio.open_connection("127.0.0.1", target + number, limit=PIECE * 4)
        await join(protocols[-1], (reader, writer), local)

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(one(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await serve(address, port, configuration=settings, create_protocol=Protocol, stream_handler=start)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def dial(address: str, port: int, ports: list[int]) -> None:
    async with connect(address, port, configuration=configuration(is_client=True)) as protocol:

        async def one(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            quic = await protocol.create_stream()
            quic[1].write(bytes([number]))
            await join(protocol, quic, (reader, writer))

        for number, local in enumerate(ports):
            await asyncio.start_server(partial(one, number), "127.0.0.1", local, limit=PIECE * 4)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        asyncio.run(listen(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        asyncio.run(dial(sys.argv[2], int(sys.argv[3]), [int(word) for word in sys.argv[4:]]))
