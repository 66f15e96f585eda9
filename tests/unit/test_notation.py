"""One notation: what is understood, what is said of the rest, and that what is printed can be typed."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.style.source import ROOT
from tunnel.cli.main import group
from tunnel.cli.offers import forwards_for
from tunnel.ends import MAX_PATH, MAX_SHOWN
from tunnel.errors import ConfigurationError
from tunnel.examples import EXAMPLES, Example, also
from tunnel.node.shares import Share, Shares, decode_shares, encode_shares
from tunnel.notation import SERVICES, read_forward, read_share, read_target, with_proxy
from tunnel.pairing.grants import GrantSet, parse_grant
from tunnel.ports.open import LENGTH_SIZE, Open, decode_open, encode
from tunnel.ports.spec import parse_forward, parse_forwards

READERS = {"share": parse_grant, "forward": parse_forward, "target": read_target}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.kind} {example.typed}")
def test_each_example_means_what_stands_beside_it(example: Example) -> None:
    read = READERS[example.kind]
    if not example.is_refused:
        assert read(example.typed) == read(example.means)
        return
    with pytest.raises(ConfigurationError) as caught:
        read(example.typed)
    assert example.means in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_has_examples_of_both_sorts(kind: str) -> None:
    assert {each.is_refused for each in EXAMPLES if each.kind == kind} == {True, False}


def test_the_page_and_help_show_these_examples() -> None:
    page = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)` \| (.+) \|$", page, re.MULTILINE)
    assert shown == [
        (each.typed, each.means if each.is_refused else f"`{each.means}`")
        for kind in READERS
        for each in sorted((each for each in EXAMPLES if each.kind == kind), key=lambda each: each.is_refused)
    ]
    for command, kind in (("expose", "share"), ("connect", "forward")):
        page = " ".join(CliRunner().invoke(group, [command, "--help"]).output.split())
        assert also(kind) in page


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_everybody_knows_is_its_port(name: str) -> None:
    assert read_share(name) == read_share(str(SERVICES[name]))
    assert read_forward(name.upper()) == read_forward(str(SERVICES[name]))


def test_a_peers_own_name_goes_before_the_service_of_that_name() -> None:
    shared = Shares(True, [Share("tcp", 22, 22, None)])
    assert shared.refused([("tcp", "ssh"), ("tcp", "http")]) == [("tcp", "http")]
    assert GrantSet.parse("ssh=192.168.1.5:2200", "22").allows("tcp", "ssh") == ("192.168.1.5", 2200)


@pytest.mark.parametrize(
    "text",
    ["nas=3000:3000", "nas=300.1.1.1:80", "nas=1.2.3:80", "3000=3000:3000", "nas=h:99999", "http://", "=", ",", ":", "[", "]:1"],
)
def test_what_means_nothing_is_refused_and_nothing_senseless_is_suggested(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_share(text)
    assert "=:" not in str(caught.value)
    assert "nas=3000:3000." not in str(caught.value)


def test_a_sentence_repeats_no_more_than_is_read() -> None:
    for read in (read_share, read_forward, read_target):
        with pytest.raises(ConfigurationError) as caught:
            read("x" * 10_000)
        assert len(str(caught.value)) < 3 * MAX_SHOWN + 200


@pytest.mark.parametrize("text", ["22", "8000-8010", "53/udp", "tcp/22", "ssh", ":22", "localhost:22", "http://localhost:8005"])
def test_whatever_is_a_share_can_be_taken_back_as_it_was_typed(text: str) -> None:
    grants = GrantSet.parse("22", "8000-8010", "53/tcp+udp", "nas=192.168.1.5:445")
    left, taken = grants.without(text)
    assert len(taken)
    assert len(left) >= len(grants) - 1


# -- what is printed can be typed

hosts = st.sampled_from(("192.168.1.5", "nas.example.net", "fd00::1", "localhost", "127.0.0.1"))
names = st.sampled_from(("nas", "web", "ssh", "http", "a-b.c"))
ports = st.tuples(st.integers(1, 65_000), st.sampled_from((0, 0, 1, 500))).map(
    lambda pair: str(pair[0]) if not pair[1] else f"{pair[0]}-{pair[0] + pair[1]}"
)
protocols = st.sampled_from(("", "/udp", "/tcp+udp"))
named = st.tuples(names, hosts, ports).map(lambda each: f"{each[0]}={f'[{each[1]}]' if ':' in each[1] else each[1]}:{each[2]}")
shares = st.tuples(st.one_of(ports, named), protocols).map("".join)


paths = st.sampled_from(("/run/app.sock", "/run/postgresql/.s.PGSQL.5432", "/x", "/run/a b=c", "/tmp/0/udp"))
sockets = st.tuples(st.one_of(st.just(""), names.map("{}=".format)), paths).map(lambda each: f"{each[0]}unix:{each[1]}")
announced = st.one_of(ports, named, sockets).map(with_proxy)
all_shares = st.one_of(shares, sockets, announced)


@given(st.lists(all_shares, min_size=1, max_size=5))
def test_what_is_shown_of_a_grant_is_read_as_that_grant(texts: list[str]) -> None:
    for text in texts:
        for grant in parse_grant(text):
            assert parse_grant(str(grant)) == (grant,)


@given(st.lists(all_shares, min_size=1, max_size=5))
def test_what_is_shown_takes_back_exactly_what_is_shown(texts: list[str]) -> None:
    try:
        grants = GrantSet.parse(*texts)
    except ConfigurationError:  # one name for two places
        return
    for grant in grants:
        _left, taken = grants.without(str(grant))
        assert grant in set(taken)


@given(st.lists(shares, min_size=1, max_size=5))
def test_what_the_other_side_is_told_it_may_reach_it_can_forward_and_join(texts: list[str]) -> None:
    try:
        grants = GrantSet.parse(*texts)
    except ConfigurationError:
        return
    told = [Share(each.protocol, each.first, each.last, each.name) for each in grants]
    assert parse_forwards(forwards_for(told))
    for each in told:
        if each.protocol == "tcp" and each.first == each.last:
            assert not Shares(True, told).refused([("tcp", read_target(str(each)))])


@given(st.lists(all_shares, min_size=1, max_size=5))
def test_what_the_other_side_is_told_it_can_forward_and_is_then_granted(texts: list[str]) -> None:
    try:
        grants = GrantSet.parse(*texts)
    except ConfigurationError:
        return
    told = decode_shares(encode_shares(grants))
    for forward in parse_forwards(forwards_for(told.usable)):
        assert grants.allows(forward.protocol, forward.target) is not None
        assert not told.refused([(forward.protocol, forward.target)])
        opening = decode_open(encode(Open(forward.protocol, forward.target))[LENGTH_SIZE:])  # type: ignore[arg-type]
        assert isinstance(opening, Open)
        assert opening.target == forward.target


@given(paths, st.one_of(ports.filter(str.isdigit), names, paths.map("unix:{}".format)))
def test_a_forward_from_a_socket_leads_where_the_same_from_a_port_does(path: str, remote: str) -> None:
    [one], [other] = parse_forward(f"unix:{path}:{remote}"), parse_forward(f"8080:{remote}")
    assert (one.path, one.target, one.protocol) == (path, other.target, other.protocol)


def test_a_path_that_the_kernel_would_cut_is_refused_with_its_size() -> None:
    longest = "/" + "p" * (MAX_PATH - 1)
    assert parse_grant(f"unix:{longest}")[0].host == f"unix:{longest}"
    for read, text in (
        (parse_grant, "unix:{}p"), (parse_forward, "unix:{}p:22"), (parse_forward, "22:unix:{}p"), (read_target, "unix:{}p"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=f"has {MAX_PATH} bytes at most, and .* has {MAX_PATH + 1}"):
            read(text.format(longest))
    accented = "/tmp/" + "é" * 51
    with pytest.raises(ConfigurationError, match="needs a name"):
        parse_grant(f"unix:{accented}")
    assert parse_grant(f"app=unix:{accented}")[0].name == "app"


def test_a_port_of_what_a_peer_calls_unix_is_no_path() -> None:
    assert parse_forward("8445:unix:445")[0].target == "unix:445"
    assert GrantSet.parse("unix=192.168.1.5:445").allows("tcp", "unix:445") == ("192.168.1.5", 445)


@given(st.text(alphabet="0123456789:[]-/*.=,ntcpudaslhoe+% \x00éix", max_size=40))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    for read in (read_share, read_forward, read_target):
        said = ""
        try:
            read(text)
        except ConfigurationError as error:
            said = str(error)
        assert not {"\n", "\x00"} & set(said)
