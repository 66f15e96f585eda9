"""Certificates: what a client trusts, what a server shows, and a sentence for each way in which that can fail.

A certificate is either that of a public authority, made out to the server's name, or the very one whose fingerprint is pinned.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import ssl
import time
from typing import Final, NamedTuple

from tunnel.errors import ConfigurationError, ServerUnreachableError, UntrustedServerError

ALPN: Final = "ptunnel/1"  # so that one port can be shared with a web site, and a web server says no at once (RFC 7301)
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_OUT_OF_TIME: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h)


def client_context(fingerprint: str | None) -> ssl.SSLContext:
    """For connections to a server.  With `fingerprint` (64 hex digits) check_pin must follow the handshake."""
    if fingerprint is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the pin says more than a name
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    return context


def check_pin(tls: ssl.SSLSocket, fingerprint: str | None, host: str) -> None:
    """After the handshake, before anything is sent.  Raises ServerUnreachableError."""
    if fingerprint is None:
        return
    shown = tls.getpeercert(binary_form=True) or b""
    digest = hashlib.sha256(shown).hexdigest()
    if not hmac.compare_digest(digest, fingerprint):
        raise UntrustedServerError(
            f"The certificate of {host} is not the pinned one (its SHA-256 is {digest}): ask the server's operator whether it "
            "was replaced, and only then change --tls-fingerprint."
        )


def server_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """`certificate` and `key` are PEM files; None: the key stands in the certificate's file.  Raises ConfigurationError."""

    def no_password() -> str:
        raise ConfigurationError(
            f"The key {key or certificate} is locked with a passphrase: save it without one, readable by you only."
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0  # a connection lasts for hours: nobody resumes one
    context.set_alpn_protocols([ALPN])
    for path in (certificate, key or certificate):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigurationError(f"The file {path} of --tls-cert or --tls-key cannot be read: {error.strerror}.") from None
    try:
        context.load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "it is no PEM file with both"
        words = str(reason).replace("_", " ").lower()
        raise ConfigurationError(
            f"--tls-cert {certificate} and --tls-key {key or certificate} are no certificate with its key ({words})."
        ) from None
    return context


def fingerprint_of(certificate: str | os.PathLike[str]) -> str:
    """SHA-256 of the first certificate of a PEM file, 64 hex digits.  Raises ConfigurationError."""
    try:
        with open(certificate, encoding="ascii", errors="replace") as file:
            text = file.read()
        start = text.index(_BEGIN)
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[start : text.index(_END, start) + len(_END)])).hexdigest()
    except (OSError, ValueError):
        raise ConfigurationError(f"{os.fspath(certificate)} holds no certificate in PEM form.") from None


class Certificate(NamedTuple):
    """The facts of a server's own certificate that its operator has to mind."""

    names: tuple[str, ...]  # host names and addresses that it is made out to
    begins_at: int  # Unix time
    ends_at: int  # Unix time
    is_own: bool  # it was signed with its own key, so that no authority vouches for it


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """The first certificate of a PEM file.  Raises ConfigurationError."""
    from cryptography import x509  # a server without TLS does not need it

    try:
        with open(path, "rb") as file:
            found = x509.load_pem_x509_certificate(file.read())
        names: list[str] = []
        with contextlib.suppress(x509.ExtensionNotFound):
            extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names += extension.get_values_for_type(x509.DNSName)
            names += map(str, extension.get_values_for_type(x509.IPAddress))
        begins_at, ends_at = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
        return Certificate(tuple(names), int(begins_at), int(ends_at), found.issuer == found.subject)
    except (OSError, ValueError):
        raise ConfigurationError(f"{os.fspath(path)} holds no certificate in PEM form.") from None


def explain(error: OSError, host: str, port: int) -> ServerUnreachableError:
    """Return the error, one sentence, for a failed attempt to reach a server over TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.verify_message or "not verified").rstrip(".")
        if error.verify_code in _OUT_OF_TIME:
            return UntrustedServerError(
                f"The certificate that {host} shows at TCP port {port} is not trusted ({reason}; this computer's clock says "
                f"{time.strftime('%Y-%m-%d %H:%M')}): set the clock if that is wrong, or have the server's operator renew it."
            )
        return UntrustedServerError(
            f"The certificate that {host} shows at TCP port {port} is not trusted ({reason}): pin it with --tls-fingerprint as "
            "'ptunnel serve' prints it, or name the server as its certificate does."
        )
    if isinstance(error, ssl.SSLError):
        reason = (getattr(error, "reason", None) or "no TLS").replace("_", " ").lower()
        return ServerUnreachableError(f"What listens at TCP port {port} of {host} is no ptunnel server with TLS ({reason}).")
    if isinstance(error, ConnectionRefusedError):
        return ServerUnreachableError(f"Nothing listens at TCP port {port} of {host}: 'ptunnel serve --tls-cert' would.")
    if isinstance(error, ConnectionError):
        return ServerUnreachableError(f"What listens at TCP port {port} of {host} hangs up: it is no ptunnel server.")
    reason = error.strerror or "no answer"
    return ServerUnreachableError(f"TCP port {port} of {host} is not reached: {reason}.")
