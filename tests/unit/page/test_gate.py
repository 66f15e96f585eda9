"""Who may ask the page for what."""

from __future__ import annotations

import pytest

from tunnel.page.gate import TOKEN_SIZE, Gate, token_of
from tunnel.page.http import Refused, Request
from tunnel.page.place import Place, read_place

TOKEN = token_of(bytes(range(32)))
HERE = "127.0.0.1:24580"
FIELDS = {"host": HERE, "authorization": f"Bearer {TOKEN}", "content-type": "application/json"}


def gate(place: Place | None = None) -> Gate:
    return Gate(place or read_place(HERE), TOKEN)


def request(method: str = "POST", path: str = "/do", **fields: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return Request(method, path, {**FIELDS, **named}, b"")


def refusal(check: str, asked: Request, at: Gate | None = None) -> str | None:
    """The counter of what is refused, or None."""
    try:
        getattr(at or gate(), check)(asked)
    except Refused as problem:
        return problem.kind
    return None


def test_the_token_has_128_bits_of_the_homes_own_chance() -> None:
    assert TOKEN_SIZE * 8 == 128
    assert len({token_of(bytes([number]) * 32) for number in range(256)}) == 256
    assert token_of(bytes(32)) == token_of(bytes(16) + b"x" * 16)
    assert set(TOKEN) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize("said", ["", "Bearer ", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}", "Bearer é",
                                  f"Bearer {TOKEN}, Bearer {TOKEN}"])  # fmt: skip
def test_nothing_without_the_token(said: str) -> None:
    assert refusal("check_token", request(authorization=said)) == "token"


def test_the_token_opens() -> None:
    assert refusal("check_token", request()) is None


@pytest.mark.parametrize("host", [HERE, "localhost:24580", "LOCALHOST:24580"])
def test_the_page_is_reached_by_the_names_of_this_machine(host: str) -> None:
    assert refusal("check_site", request(host=host)) is None


@pytest.mark.parametrize("host", ["", "evil.example", "evil.example:24580", "127.0.0.1", "127.0.0.1:24581", "localhost",
                                  "localhost.evil.example:24580", "127.0.0.1:24580, evil.example", "[::1]:24580"])  # fmt: skip
def test_a_site_that_rebinds_its_name_to_this_machine_gets_nothing(host: str) -> None:
    assert refusal("check_site", request(host=host)) == "host"
    assert refusal("check_site", request("GET", "/", host=host, sec_fetch_dest="document")) == "host"


@pytest.mark.parametrize("fields", [
    {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:8080"}, {"origin": f"https://{HERE}"},
    {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}, {"sec_fetch_site": "what comes later"},
    {"origin": f"http://{HERE}", "sec_fetch_site": "cross-site"},
])  # fmt: skip
def test_another_site_gets_nothing_though_it_had_the_token(fields: dict[str, str]) -> None:
    assert refusal("check_site", request(**fields)) == "site"
    assert refusal("check_site", request("GET", "/events", **fields)) == "site"
    assert refusal("check_site", request("GET", "/page.js", **fields)) == "site"


def test_the_page_itself_asks_as_the_same_origin() -> None:
    assert refusal("check_site", request(origin=f"http://{HERE}", sec_fetch_site="same-origin")) is None
    assert refusal("check_site", request(host="localhost:24580", origin="http://localhost:24580")) is None


def test_a_link_from_anywhere_leads_to_the_bare_page_but_no_frame_does() -> None:
    fields = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert refusal("check_site", request("GET", "/", sec_fetch_dest="document", **fields)) is None
    assert refusal("check_site", request("GET", "/", sec_fetch_dest="iframe", **fields)) == "site"
    assert refusal("check_site", request("GET", "/events", sec_fetch_dest="document", **fields)) == "site"
    assert refusal("check_site", request("POST", "/", sec_fetch_dest="document", **fields)) == "site"


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=application/json"]
)
def test_what_a_form_of_another_site_can_send_is_no_action(kind: str) -> None:
    assert refusal("check_action", request(content_type=kind)) == "request"


def test_an_action_is_json() -> None:
    assert refusal("check_action", request(content_type="Application/JSON; charset=utf-8")) is None


def test_through_a_unix_socket_any_port_of_this_machine_may_lead() -> None:
    at = gate(read_place("unix:/run/page.sock"))
    for host in ("localhost", "localhost:9999", "127.0.0.1:24580", "[::1]:80"):
        assert refusal("check_site", request(host=host), at) is None
    for host in ("", "evil.example", "localhost.evil.example", "127.0.0.1:80.evil.example", "localhost:123456"):
        assert refusal("check_site", request(host=host), at) == "host"
