"""How a server is reached where UDP is blocked: flags, variables, config.toml, and what a server's own word says."""

from __future__ import annotations

import pytest

from tunnel.errors import ConfigurationError
from tunnel.server_spec import (
    TlsOptions,
    parse_server,
    read_fingerprint,
    read_tls_port,
    tls_options,
    with_tls_options,
)
from tunnel.settings import Settings, load

PIN = "0123456789abcdef" * 4
COLONS = ":".join(PIN[at : at + 2] for at in range(0, 64, 2)).upper()


def test_nothing_said_means_port_443_and_public_authorities() -> None:
    assert Settings().tls == TlsOptions(443, None)
    assert tls_options("rv.example.net", TlsOptions()) == (443, None)
    assert with_tls_options("rv.example.net", TlsOptions()) == "rv.example.net"


@pytest.mark.parametrize("text", [PIN, PIN.upper(), COLONS, f"SHA256:{PIN}", f" {PIN} "])
def test_a_fingerprint_is_read_however_it_is_printed(text: str) -> None:
    assert read_fingerprint(text) == PIN


@pytest.mark.parametrize("text", ["", "ab", PIN[:-1], PIN + "0", PIN[:-1] + "g", "SHA256:"])
def test_what_is_no_fingerprint_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--tls-fingerprint is the SHA-256"):
        read_fingerprint(text)


@pytest.mark.parametrize("text", ["", "0", "65536", "https", "-1", "4 43", "٤٤٣"])
def test_what_is_no_port_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--tls-port is a TCP port from 1 to 65535, or off"):
        read_tls_port(text)


def test_a_servers_word_goes_before_what_was_said_for_all() -> None:
    default = TlsOptions(8443, PIN)
    assert tls_options("rv.example.net:24531", default) == default
    assert tls_options("rv.example.net,tls=1443", default) == (1443, PIN)
    assert tls_options(f"[2001:db8::1]:5,pin={COLONS},tls=off", TlsOptions()) == (None, PIN)


@pytest.mark.parametrize(
    "word", ["rv.example.net,tls", "rv.example.net,port=1", "rv.example.net,", "rv.example.net,tls=x", "rv,pin=1"]
)
def test_options_that_a_server_does_not_have_are_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="--server"):
        tls_options(word, TlsOptions())


def test_options_do_not_change_where_the_server_is() -> None:
    assert parse_server(f"rv.example.net:1234,tls=8443,pin={PIN}") == ("rv.example.net", 1234)
    assert parse_server("[2001:db8::1],tls=off") == ("2001:db8::1", 24_531)


def test_flags_are_written_into_the_word_of_the_server_so_that_they_are_remembered_with_it() -> None:
    settings = load({}, {}, {"server": "rv.example.net", "tls_port": "8443", "tls_fingerprint": COLONS})
    assert settings.server == f"rv.example.net,tls=8443,pin={PIN}"
    assert settings.given_server == settings.server
    assert settings.tls == (8443, PIN)
    assert with_tls_options(settings.server, TlsOptions()) == settings.server
    assert load({}, {}, {"server": "rv,tls=off", "tls_port": "8443"}).server == "rv,tls=off"


def test_variables_go_before_the_file_and_flags_before_both() -> None:
    file = {"tls_port": "1", "tls_fingerprint": PIN}
    assert load(file, {}).tls == (1, PIN)
    assert load(file, {"PTUNNEL_TLS_PORT": "2"}).tls == (2, PIN)
    assert load(file, {"PTUNNEL_TLS_PORT": "2"}, {"tls_port": "off"}).tls == (None, PIN)
    with pytest.raises(ConfigurationError, match=r"config\.toml: tls_port"):
        load({"tls_port": "x"}, {})
    with pytest.raises(ConfigurationError, match="PTUNNEL_TLS_FINGERPRINT"):
        load({}, {"PTUNNEL_TLS_FINGERPRINT": "x"})
