"""The operator's access list: addresses and prefixes that may use a server, and tokens of which others prove knowledge."""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, TypeAlias

from tunnel.core.prefixes import Prefixes
from tunnel.errors import ConfigurationError
from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import Buckets, TreeBuckets
from tunnel.units import Instant

MIN_TOKEN: Final = 16  # characters of an access token, so that its MAC cannot be searched
PROOF_RATE: Final = 1.0  # proofs a second that one address may have tried with every token, and ...
PROOF_BURST: Final = 20  # ... in a row: a household whose server has restarted
PROOF_WORK: Final = 50_000  # MACs a second for that, over all addresses: a sixth of a core
MAX_KNOWN: Final = 8_192  # sessions and addresses whose token is remembered; the one longest unused goes

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class AccessList:
    """The access list of a server.  Empty: everybody may use it."""

    __slots__ = ("_prefixes", "is_open", "tokens")

    def __init__(self, networks: tuple[Network, ...] = (), tokens: tuple[bytes, ...] = ()) -> None:
        self.tokens = tokens
        self._prefixes: dict[tuple[int, int], set[int]] = {}  # by version and length, so that a thousand cost what ten do
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            found = self._prefixes.setdefault((network.version, shift), set())
            found.add(int(network.network_address) >> shift)
        self.is_open = not networks and not tokens

    def allows_host(self, host: str) -> bool:
        """Whether the address alone is enough."""
        if self.is_open:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        number, version = int(address), address.version
        return any(number >> shift in found for (of, shift), found in self._prefixes.items() if of == version)

    @classmethod
    def parse(cls, text: str, source: str = "access file") -> AccessList:
        """One entry a line: an address, a prefix, or `token SECRET`; `#` begins a comment.

        Raises ConfigurationError naming the line.  A file without any entry lets nobody in, so it is refused.
        """
        networks: list[Network] = []
        tokens: list[bytes] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if words[0] == "token":
                if len(words) != 2 or len(words[1]) < MIN_TOKEN:
                    raise ConfigurationError(
                        f"{source}, line {number}: write 'token' and one secret of at least {MIN_TOKEN} characters."
                    )
                tokens.append(words[1].encode())
                continue
            try:
                (word,) = words
                networks.append(ipaddress.ip_network(word))
            except ValueError:
                raise ConfigurationError(
                    f"{source}, line {number}: {words[0]!r} is no address, no prefix such as 198.51.100.0/24 and no token."
                ) from None
        if not networks and not tokens:
            raise ConfigurationError(f"{source} names nobody: give addresses, prefixes or tokens, or leave --access out.")
        return cls(tuple(networks), tuple(tokens))


class Gate:
    """Applies the list to requests.  A proof does not say which token it was made with, so a wrong one costs a MAC for each.

    Whoever was let in once costs one, as its token is remembered; how often all are tried is bounded, for an address and in all.
    """

    __slots__ = ("_access", "_known", "_rate", "_work")

    def __init__(self, access: AccessList, entropy: Callable[[int], bytes]) -> None:
        self._access = access
        self._known: OrderedDict[Hashable, bytes] = OrderedDict()
        self._rate = TreeBuckets(PROOF_RATE, PROOF_BURST, entropy(16))
        self._work = Buckets(PROOF_WORK, PROOF_WORK, entropy(16), slots=1)

    def replace(self, access: AccessList) -> None:
        """Go by another list from now on: whose token is not on it is not known any more."""
        self._access = access
        self._known.clear()

    def admits(self, now: Instant, host: str, keys: Prefixes, request: messages.Request) -> bool | None:
        """None: not now, too many proofs are to be tried."""
        access = self._access
        if access.is_open or access.allows_host(host):
            return True
        if not request.proof or not access.tokens:
            return False
        places = (request.session, keys[0])
        token = next((known for place in places if (known := self._known.get(place)) is not None and _fits(known, request)), None)
        if token is None:
            if not self._rate.take(now, keys) or not self._work.take(now, "", len(access.tokens)):
                return None
            token = next((each for each in access.tokens if _fits(each, request)), None)
        if token is None:
            return False
        for place in places:
            self._known[place] = token
            self._known.move_to_end(place)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return True


def _fits(token: bytes, request: messages.Request) -> bool:
    return hmac.compare_digest(messages.access_proof(token, request.proven_part), request.proof)
