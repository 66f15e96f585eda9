"""What the URL of a fleet's store may be, and that a password is in no sentence about it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.driver.tls import make_certificate
from tunnel.errors import ConfigurationError
from tunnel.fleet.url import Kind, parse


def test_one_store_is_named_by_host_or_socket() -> None:
    found = parse("redis://ann:p%40ss@store.example.net:7000/3")
    assert (found.kind, found.hosts, found.db) == (Kind.ALONE, (("store.example.net", 7000),), 3)
    assert (found.user, found.password, found.tls) == ("ann", "p@ss", None)
    assert parse("redis://[2001:db8::1]/").hosts == (("2001:db8::1", 6379),)
    found = parse("unix://:secret@/run/redis/redis.sock?db=2")
    assert (found.path, found.hosts, found.user, found.password, found.db) == ("/run/redis/redis.sock", (), None, "secret", 2)


def test_clusters_and_sentinels_are_named_by_several_hosts() -> None:
    found = parse("redis+cluster://:s@one,[2001:db8::2]:7001,three/")
    assert (found.kind, found.hosts) == (Kind.CLUSTER, (("one", 6379), ("2001:db8::2", 7001), ("three", 6379)))
    found = parse("redis+sentinel://ann:secret@one,two:26380/fleet/1?sentinel_password=other")
    assert (found.kind, found.hosts) == (Kind.SENTINELS, (("one", 26_379), ("two", 26_380)))
    assert (found.name, found.db, found.user, found.password) == ("fleet", 1, "ann", "secret")
    assert found.sentinel_password == "other"
    assert "secret" not in str(found)
    assert "other" not in str(found)


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
def test_certificates_and_the_name_in_them_are_checked_unless_the_name_is_not_to_be(scheme: str, tmp_path: Path) -> None:
    mine = make_certificate(tmp_path, "store.example.net", authority=True)
    context = parse(
        f"{scheme}://store.example.net/fleet?ssl_ca_certs={mine.certificate}".replace("/fleet", "/fleet" * ("sent" in scheme))
    ).tls
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) == 1
    assert parse("rediss://store.example.net/").tls is not None
    context = parse("rediss://store.example.net/?ssl_check_hostname=false").tls
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://:secret@one/", "needs the URL of a store"),
        ("redis://:secret@/", "no host"),
        ("redis://:secret@one:port/", "no host"),
        ("redis://:secret@[::1/", "needs the URL of a store"),
        ("redis://:secret@one,two/", "Several hosts"),
        ("redis://:secret@one/first", "number"),
        ("redis+sentinel://:secret@one/", "by which name"),
        ("unix://:secret@/", "where the socket"),
        ("redis://:secret@one/?ssl_ca_certs=ca.pem", "begins with 'rediss'"),
        ("rediss://:secret@one/?ssl_ca_cert=ca.pem", "'ssl_ca_cert'"),
        ("rediss://:secret@one/?ssl_ca_certs=/nowhere/ca.pem", "No such file"),
        ("rediss://:secret@one/?ssl_certfile=/nowhere/me.pem", "No such file"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="holds no certificate"):
        parse(f"rediss://one/?ssl_ca_certs={tmp_path / 'ca.pem'}")
