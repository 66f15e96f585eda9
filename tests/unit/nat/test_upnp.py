"""UPnP-IGD: what is asked, and how little of an answer is believed."""

from __future__ import annotations

import pytest

from tunnel.errors import MalformedPacket
from tunnel.nat import upnp
from tunnel.nat.upnp import Entry, Exchange, HttpAnswer, Place, Service

GATEWAY = "192.168.1.1"
SERVICE = Service(Place(5000, "/ctl/IPConn"), upnp.SERVICES[1])


def search_answer(location: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: x\r\nLocation: {location}\r\n\r\n".encode("latin-1")


def description(*services: tuple[str, str], base: str = "") -> bytes:
    inner = "".join(
        f"<service><serviceType>{kind}</serviceType><serviceId>x</serviceId><controlURL>{url}</controlURL></service>"
        for kind, url in services
    )
    return f'<?xml version="1.0"?><root>{base}<device><serviceList>{inner}</serviceList></device></root>'.encode()


def test_a_search_answer_names_the_place_of_the_description() -> None:
    assert upnp.decode_search_answer(search_answer("http://192.168.1.1:5000/root.xml")) == Place(5000, "/root.xml")
    assert upnp.decode_search_answer(search_answer("http://192.168.1.1")) == Place(80, "/")


def test_a_search_answer_may_be_written_in_other_ways() -> None:
    for line in (
        b"LOCATION:http://192.168.1.1:5000/x",
        b"location : http://192.168.1.1:5000/x ",
        b"LoCaTiOn:\thttp://192.168.1.1:5000/x",
    ):
        for end in (b"\r\n", b"\n"):  # some write bare LF, and no empty line at the end
            answer = end.join((b"HTTP/1.1 200 OK", b"EXT", b"ST: upnp:rootdevice", line, b""))
            assert upnp.decode_search_answer(answer) == Place(5000, "/x")


@pytest.mark.parametrize(
    "host", ["192.168.1.2", "router.lan", "fritz.box", "my_router", "[fe80::1]", "[fe80::1%25eth0]", "[2001:db8::1]", "localhost"]
)
def test_of_an_address_that_an_answer_names_only_the_port_and_the_path_are_read(host: str) -> None:
    """The gateway itself is asked: a router may tell a name of its own, an IPv6 address, or that of the twin it stands in for."""
    assert upnp.decode_search_answer(search_answer(f"http://{host}:5000/root.xml")) == Place(5000, "/root.xml")
    exchange = Exchange(GATEWAY, upnp.decode_search_answer(search_answer(f"http://{host}/root.xml")))
    assert b"\r\n".join(sorted(exchange.request.split(b"\r\n"))).strip() == (
        b"Connection: close\r\nGET /root.xml HTTP/1.1\r\nHost: 192.168.1.1:80\r\nUser-Agent: ptunnel"
    )
    service = (upnp.SERVICES[0], f"http://{host}:6000/ctl")
    assert upnp.decode_description(description(service), Place(5000, "/"))[0].place == Place(6000, "/ctl")
    base = f"<URLBase>http://{host}:7000/igd/</URLBase>"
    assert upnp.decode_description(description((service[0], "ctl"), base=base), Place(5000, "/"))[0].place == Place(
        7000, "/igd/ctl"
    )


def test_a_search_answer_that_is_too_long_is_not_looked_at() -> None:
    answer = search_answer("http://192.168.1.1")
    whole = answer + bytes(upnp.MAX_SEARCH_ANSWER - len(answer))
    assert upnp.decode_search_answer(whole) == Place(80, "/")
    with pytest.raises(MalformedPacket, match=f"{upnp.MAX_SEARCH_ANSWER + 1} bytes"):
        upnp.decode_search_answer(whole + b"x")


@pytest.mark.parametrize(
    "location",
    [
        "http:///root.xml",
        "http://[::1/root.xml",
        "http://router lan/root.xml",
        "http://192.168.1.1@evil.example/root.xml",
        "http://192.168.1.1:0/root.xml",
        "http://192.168.1.1:99999/root.xml",
        "https://192.168.1.1/root.xml",
        "file:///etc/passwd",
        "http://192.168.1.1/root.xml\x00",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/\rHost: evil",
        "http://192.168.1.1/" + "a" * 600,
        "",
    ],
)
def test_an_address_that_is_no_plain_one_is_refused(location: str) -> None:
    with pytest.raises(MalformedPacket):
        upnp.decode_search_answer(search_answer(location))


def test_the_best_service_is_taken() -> None:
    place = Place(5000, "/igd/root.xml")
    v1, ppp = (upnp.SERVICES[1], "/ctl/IP"), (upnp.SERVICES[2], "/ctl/PPP")
    other = ("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/ctl/L3F")
    assert upnp.decode_description(description(other, ppp, v1), place) == (
        Service(Place(5000, "/ctl/IP"), v1[0]),
        Service(Place(5000, "/ctl/PPP"), ppp[0]),
    )
    assert upnp.decode_description(description(ppp), place)[0].place == Place(5000, "/ctl/PPP")
    assert upnp.decode_description(description((v1[0], "ctl?a=1&amp;b=2")), place)[0].place == Place(5000, "/igd/ctl?a=1&b=2")
    base = "<URLBase>http://192.168.1.1:6000/</URLBase>"
    assert upnp.decode_description(description(v1, base=base), place)[0].place == Place(6000, "/ctl/IP")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        description(("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/ctl")),
        description((upnp.SERVICES[0], "http://192.168.1.9@evil.example/ctl")),
        description((upnp.SERVICES[0], "/ctl"), base="<URLBase>https://192.168.1.1/</URLBase>"),
        description((upnp.SERVICES[0], "/c tl")),
        description((upnp.SERVICES[0], "/ctl\r\nX: y")),
        b"<service>" * 7_000,
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]>&a;" * 1_000,
    ],
)
def test_a_bad_description_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedPacket):
        upnp.decode_description(data, Place(5000, "/"))


def read(*pieces: bytes) -> HttpAnswer:
    reader = Exchange(GATEWAY, Place(80, "/"))
    for piece in pieces:
        if reader.feed(piece):
            break
    return reader.answer()


def test_http_answers_of_every_shape_are_read() -> None:
    assert read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r", b"\nhel", b"lo and more") == HttpAnswer(200, b"hello")
    assert read(b"HTTP/1.0 500 Internal Server Error\r\nServer: x\r\n\r\nup to the end") == HttpAnswer(500, b"up to the end")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
    assert read(chunked) == HttpAnswer(200, b"hello")
    reader = Exchange(GATEWAY, Place(80, "/"))
    done = [reader.feed(chunked[position : position + 1]) for position in range(len(chunked))]
    assert done.index(True) == len(chunked) - 1
    assert reader.answer().body == b"hello"
    for ending in (b"\n", b"\r\n"):
        head = ending.join((b"HTTP/1.1 200 OK", b"CONTENT-LENGTH:5", b"connection: Close", b"X-Folded: a", b" b", b"", b""))
        assert read(head + b"hello") == HttpAnswer(200, b"hello")
    assert read(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok") == HttpAnswer(200, b"ok")
    assert read(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nup to", b" the end", b"") == HttpAnswer(200, b"up to the end")
    trailer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n00005\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    assert read(trailer) == HttpAnswer(200, b"hello")


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\nhel",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",),
        (b"SSH-2.0-OpenSSH\r\n\r\n",),
        (b"x" * 10_000,),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * upnp.MAX_HTTP_HEADER + b"\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n" * 100] * 20, b"\r\n"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 8_192] * 9),
    ],
)
def test_http_answers_that_are_none_are_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedPacket):
        read(*pieces)


def test_a_mapping_is_asked_for_and_given_back() -> None:
    request = upnp.add_mapping(GATEWAY, SERVICE, "192.168.1.10", 40_000, 40_001, 3600).request
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n")
    assert f'SOAPAction: "{SERVICE.kind}#AddPortMapping"'.encode() in head
    assert f"Content-Length: {len(body)}".encode() in head
    for part in (
        b"<NewExternalPort>40001<",
        b"<NewInternalPort>40000<",
        b"<NewInternalClient>192.168.1.10<",
        b"<NewLeaseDuration>3600<",
    ):
        assert part in body
    assert b"#DeletePortMapping" in upnp.delete_mapping(GATEWAY, SERVICE, 40_001).request


def test_soap_answers() -> None:
    told = HttpAnswer(200, b"<a><NewExternalIPAddress>44.128.0.1</NewExternalIPAddress></a>")
    assert upnp.decode_external(told) == "44.128.0.1"
    for bad in (b"", b"<NewExternalIPAddress></NewExternalIPAddress>", b"<NewExternalIPAddress>::1</NewExternalIPAddress>"):
        with pytest.raises(MalformedPacket):
            upnp.decode_external(HttpAnswer(200, bad))
    assert upnp.decode_error(HttpAnswer(200, b"")) == 0
    assert upnp.decode_error(HttpAnswer(500, b"<UPnPError><errorCode>718</errorCode></UPnPError>")) == upnp.CONFLICT
    assert upnp.decode_error(HttpAnswer(500, b"<errorCode>7 1 8</errorCode>")) == 500
    assert upnp.decode_error(HttpAnswer(403, b"")) == 403
    assert upnp.decode_error(HttpAnswer(200, b"<s:Fault><errorCode>725</errorCode></s:Fault>")) == upnp.ONLY_PERMANENT


def test_whose_a_port_is() -> None:
    request = upnp.get_mapping(GATEWAY, SERVICE, 40_001).request
    assert b"#GetSpecificPortMappingEntry" in request
    assert b"<NewExternalPort>40001<" in request
    told = (
        b"<NewInternalPort>40000</NewInternalPort><NewInternalClient> 192.168.1.10 </NewInternalClient><NewEnabled>1</NewEnabled>"
        b"<NewLeaseDuration>77</NewLeaseDuration>"
    )
    assert upnp.decode_entry(HttpAnswer(200, told)) == Entry("192.168.1.10", 40_000, 77)
    assert upnp.decode_entry(HttpAnswer(200, told.replace(b"77", b"for ever"))) == Entry("192.168.1.10", 40_000, 0)
    for status, bad in ((500, told), (200, b""), (200, told.replace(b"40000", b"")), (200, told.replace(b"40000", b"4" * 5000))):
        with pytest.raises(MalformedPacket):
            upnp.decode_entry(HttpAnswer(status, bad))


def test_elements_may_have_attributes_and_names_that_begin_alike() -> None:
    """Routers write the type of a value beside it, as UPnP's first examples did."""
    typed = (
        b'<NewExternalIPAddress xmlns:dt="urn:schemas-microsoft-com:datatypes" dt:dt="string">44.128.0.1</NewExternalIPAddress>'
    )
    assert upnp.decode_external(HttpAnswer(200, typed)) == "44.128.0.1"
    assert upnp.decode_error(HttpAnswer(500, b'<errorCode xmlns="">725</errorCode>')) == upnp.ONLY_PERMANENT
    kind = upnp.SERVICES[1]
    text = description((kind, "/ctl")).replace(b"<service>", b'<service n="1">').replace(b"<serviceType>", b"<serviceType\n>")
    assert upnp.decode_description(text, Place(5000, "/")) == (Service(Place(5000, "/ctl"), kind),)
    for bad in (b"<errorCode", b"<errorCode x", b"<errorCodes>718</errorCodes>", b"<errorCode></errorCode x>", b"<errorCode/>"):
        assert upnp.decode_error(HttpAnswer(500, bad)) == 500
