"""What people hand over as settings: with the newline of its file, with a scheme, with blanks around."""

from __future__ import annotations

import pytest

from tunnel.errors import ConfigurationError
from tunnel.server_spec import DHT, MAX_SERVERS, alternatives, members, parse_server, tls_options, widest
from tunnel.settings import load


@pytest.mark.parametrize("given", ["secret-of-sixteen", "secret-of-sixteen\n", "  secret-of-sixteen \r\n"])
def test_a_token_may_come_with_the_newline_of_its_file(given: str) -> None:
    assert load({}, {"PTUNNEL_ACCESS_TOKEN": given}).access_token == "secret-of-sixteen"
    assert load({"access_token": given}, {}).access_token == "secret-of-sixteen"


@pytest.mark.parametrize("given", ["token secret-of-sixteen", '"secret-of-sixteen"', "one\ntwo"])
def test_more_than_a_token_is_a_sentence_that_names_its_place(given: str) -> None:
    with pytest.raises(ConfigurationError, match="PTUNNEL_ACCESS_TOKEN: a token has no blanks"):
        load({}, {"PTUNNEL_ACCESS_TOKEN": given})


def test_a_token_of_bytes_that_are_no_text_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="PTUNNEL_ACCESS_TOKEN is not UTF-8 text"):
        load({}, {"PTUNNEL_ACCESS_TOKEN": "secret-of-sixteen\udcff"})


@pytest.mark.parametrize(
    "given", ["https://rv.example.net", "http://rv.example.net/", "udp://rv.example.net:24531", " rv.example.net "]
)
def test_a_server_may_be_written_as_a_browser_shows_it(given: str) -> None:
    assert parse_server(given) == ("rv.example.net", 24_531)


def test_blanks_around_other_settings_do_not_matter() -> None:
    settings = load({"path": "relay "}, {"PTUNNEL_PORTMAP": "off\n", "PTUNNEL_TLS_PORT": " 8443"})
    assert (settings.path, settings.portmap, settings.tls.port) == ("relay", "off", 8443)


@pytest.mark.parametrize(
    "given", ["rv.example.net:5,dht", "rv.example.net:5, dht", "dht,rv.example.net:5", ["rv.example.net:5", "dht"]]
)
def test_a_server_and_the_dht_are_one_word_the_server_first(given: str | list[str]) -> None:
    said = load({"server": given}, {}).server
    assert said == "rv.example.net:5,dht"
    assert alternatives(said) == ("rv.example.net:5", DHT)
    assert parse_server(said) == ("rv.example.net", 5)


def test_options_of_a_server_stay_with_it_when_the_dht_stands_beside() -> None:
    settings = load({"server": "203.0.113.5,dht", "tls_port": "8443"}, {})
    assert settings.server == "203.0.113.5,tls=8443,dht"
    assert alternatives(settings.server) == ("203.0.113.5,tls=8443", DHT)
    assert tls_options(settings.server, settings.tls).port == 8_443
    assert alternatives("rv.example.net") == ("rv.example.net",)
    assert alternatives("dht") == ("dht",)


@pytest.mark.parametrize(
    "given",
    [
        "rv1.example.net, rv2.example.net:5,tls=off,dht",
        ["rv1.example.net", "rv2.example.net:5,tls=off", "dht"],
        ["rv1.example.net", "dht", "rv2.example.net:5", "tls=off", "rv1.example.net"],
    ],
)
def test_several_servers_are_one_word_each_once_and_with_options_of_its_own(given: str | list[str]) -> None:
    settings = load({"server": given, "tls_port": "8443"}, {})
    assert settings.server == "rv1.example.net,tls=8443,rv2.example.net:5,tls=off,dht"
    assert members(settings.server) == ("rv1.example.net,tls=8443", "rv2.example.net:5,tls=off")
    assert alternatives(settings.server) == ("rv1.example.net,tls=8443,rv2.example.net:5,tls=off", DHT)
    assert parse_server(settings.server) == ("rv1.example.net", 24_531)
    assert [tls_options(each, settings.tls).port for each in members(settings.server)] == [8_443, None]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["rv1.example.net", "pin"], r"'pin' is no option of a server"),
        ("rv1.example.net,port=5", r"'port=5' is no option of a server, as .* and dht are"),
        ("rv1.example.net,,rv2.example.net", r"'' is no option of a server"),
        (["rv1.example.net", "300.1.1.1"], "neither a host name nor an address"),
        (["rv1.example.net", "rv2.example.net:99999"], "no port"),
        ([f"rv{number}.example.net" for number in range(MAX_SERVERS + 1)], f"names {MAX_SERVERS + 1} servers; {MAX_SERVERS} may"),
    ],
)
def test_each_server_of_a_list_is_checked_and_there_are_only_so_many(given: str | list[str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        load({"server": given}, {})


@pytest.mark.parametrize(
    ("known", "configured", "used"),
    [
        ("rv1.example.net", "rv1.example.net,rv2.example.net", "rv1.example.net,rv2.example.net"),
        ("rv1.example.net:24531,tls=off", "rv2.example.net,rv1.example.net", "rv2.example.net,rv1.example.net"),
        ("rv1.example.net", "rv1.example.net", "rv1.example.net"),
        ("rv3.example.net", "rv1.example.net,rv2.example.net", "rv3.example.net"),
        ("rv1.example.net,rv2.example.net", "rv1.example.net", "rv1.example.net,rv2.example.net"),
        ("rv1.example.net,dht", "rv1.example.net,rv2.example.net", "rv1.example.net,dht"),
        ("dht", "rv1.example.net,rv2.example.net", "dht"),
        ("what an older one, has remembered", "rv1.example.net,rv2.example.net", "what an older one, has remembered"),
        (None, "rv1.example.net,rv2.example.net", None),
        ("rv1.example.net", None, "rv1.example.net"),
    ],
)
def test_a_peer_is_met_by_the_list_when_its_server_got_others_beside_it(
    known: str | None, configured: str | None, used: str
) -> None:
    assert widest(known, configured) == used
