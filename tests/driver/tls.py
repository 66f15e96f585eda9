"""What the tests of TLS share: certificates of their own, and UDP sockets that a network blocks."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tunnel.doors.udp.plain import PlainSocket
from tunnel.units import Address, ReceivedBatch


@dataclass(frozen=True)
class Certificate:
    """PEM files, and what a client may pin."""

    certificate: str
    key: str
    fingerprint: str


def make_certificate(folder: Path, *names: str, stem: str = "server", authority: bool = False, days: int = 0) -> Certificate:
    """Self-made, for these names and addresses; with `authority` it may stand in a list of trusted ones.

    Valid since yesterday until the day after tomorrow, seen from so many `days` from now.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ptunnel test {stem}")])
    alternatives: list[x509.GeneralName] = []
    for each in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(each)))
        except ValueError:
            alternatives.append(x509.DNSName(each))
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / f"{stem}.pem", folder / f"{stem}.key"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    digest = sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()
    return Certificate(str(certificate_path), str(key_path), digest)


class Firewall:
    """What a network does with UDP: an `opener` whose sockets neither send nor receive while it `blocks`."""

    def __init__(self, *, blocks: bool = True) -> None:
        self.blocks = blocks
        self.sockets = 0

    def open(self, host: str, port: int, /) -> BlockableSocket:
        self.sockets += 1
        return BlockableSocket(self, host, port)


class BlockableSocket(PlainSocket):
    def __init__(self, firewall: Firewall, host: str, port: int) -> None:
        super().__init__(host, port)
        self._firewall = firewall

    def send(self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0) -> bool:
        return self._firewall.blocks or super().send(remote, buffer, segment_size, ttl, ecn)

    def receive(self) -> ReceivedBatch | None:
        while (batch := super().receive()) is not None:
            if not self._firewall.blocks:
                return batch
        return None
