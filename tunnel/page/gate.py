"""Checks of who may ask the page for what: the name by which it is reached, the site that asks, the token.

The address that `ptunnel page` prints has the token behind a `#`, which a browser sends to nobody.  The page's script takes it
out of the address at once, keeps it for this tab (sessionStorage, which no other port of this machine sees), and sends it in a
field of each request.  It is no cookie: those know no ports, so every program behind a forward at 127.0.0.1 would get it.
"""

from __future__ import annotations

import base64
import hmac
from typing import Final

from tunnel.page.http import Refused, Request
from tunnel.page.place import LOCAL_NAME, Place

TOKEN_SIZE: Final = 16  # bytes of chance in a token
_SCHEME: Final = "Bearer "
_JSON: Final = "application/json"


def token_of(secret: bytes) -> str:
    """The token of a home with this secret, in letters that may stand in an address."""
    return base64.urlsafe_b64encode(secret[:TOKEN_SIZE]).rstrip(b"=").decode()


class Gate:
    """Refuses what is not for this page.  Every check raises Refused."""

    def __init__(self, place: Place, token: str) -> None:
        self._place = place
        self._names = place.names(place.port)
        self._token = token.encode()

    def check_site(self, request: Request) -> None:
        """The browser reaches the page under a name of this machine, and no other site has it ask.

        A look at the page itself may come from anywhere: it holds nothing of this home.
        """
        host = request.fields.get("host", "").lower()
        if not (LOCAL_NAME.fullmatch(host) if self._place.path else host in self._names):
            raise Refused(403, "host", "This page has another address: 'ptunnel page' prints it.")
        origin = request.fields.get("origin")
        site = request.fields.get("sec-fetch-site", "none")
        if (origin is None or origin == f"http://{host}") and site in ("none", "same-origin"):
            return
        if request.method == "GET" and request.path == "/" and request.fields.get("sec-fetch-dest") == "document":
            return
        raise Refused(403, "site", "Another site has the browser ask for this, and gets nothing.")

    def check_token(self, request: Request) -> None:
        said = request.fields.get("authorization", "")
        if not hmac.compare_digest(said.encode("latin-1"), _SCHEME.encode() + self._token):
            raise Refused(401, "token", "This page needs the address that 'ptunnel page' prints.")

    def check_action(self, request: Request) -> None:
        """A form of another site can send no JSON, whatever the browser tells of sites (Fetch Standard, CORS-safelisted)."""
        if request.fields.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise Refused(415, "request", "An action is JSON.")
