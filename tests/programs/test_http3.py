"""HTTP/3 over a UDP forward: a large answer, once at once and once after the path has changed."""

from __future__ import annotations

import pytest

from tests.netns.programs import checksum, random_file
from tests.programs.homes import Homes, needs

pytestmark = [pytest.mark.nightly, needs("gtlsserver", "gtlsclient", "openssl")]

SIZE = 12_000_000


def test_a_large_answer_arrives_whole(homes: Homes) -> None:
    served, taken = homes.folder / "served", homes.folder / "taken"
    served.mkdir()
    taken.mkdir()
    digest = random_file(served / "big", SIZE)
    key, certificate = homes.folder / "key.pem", homes.folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-days", "2", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    homes.use("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject)
    homes.serve("http3", ["gtlsserver", "-q", "-d", served, "127.0.0.1", "4433", key, certificate], 4433, kind="udp")
    homes.link("4433/udp", forward=["14433:4433/udp"])
    for _ in range(2):
        words = ["-q", "--exit-on-all-streams-close", f"--download={taken}", "127.0.0.1", "14433", "https://localhost/big"]
        homes.use("gtlsclient", *words)
        assert checksum(taken / "big") == digest
        (taken / "big").unlink()
        homes.rebind()
