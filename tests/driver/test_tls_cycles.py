"""A server looks at old objects no more, so a TLS connection that ended must leave nothing that only a collection finds."""

from __future__ import annotations

import gc
from pathlib import Path

import trio

from tests.driver.tls import make_certificate
from tunnel.doors.tls.client import dial
from tunnel.doors.tls.server import ServerCertificate, TlsListener
from tunnel.faults import Faults
from tunnel.units import ReceivedBatch

CONNECTIONS = 20


async def test_a_connection_that_ended_leaves_no_cycle(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "127.0.0.1")
    listener = TlsListener("127.0.0.1", 0, ServerCertificate(made.certificate, made.key))

    async def answer(batch: ReceivedBatch) -> bool:
        return listener.send(batch.remote, batch.buffer, batch.stride)

    async def connect() -> None:
        client = await dial("127.0.0.1", listener.local_address.port, made.fingerprint)
        client.send(client.remote, memoryview(b"hello"), 5)
        while client.receive() is None:
            await client.wait_readable()
        client.close()
        while len(listener):  # noqa: ASYNC110
            await trio.sleep(0.005)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, answer, Faults())
            await connect()
            gc.collect()
            gc.disable()
            try:
                for _ in range(CONNECTIONS):
                    await connect()
                found = gc.collect()
            finally:
                gc.enable()
            nursery.cancel_scope.cancel()
    listener.close()
    assert found < CONNECTIONS
