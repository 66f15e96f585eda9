"""The slow hash between the number of a code and what is announced under it, so that listing all numbers is dear."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

NUMBERS: Final = 90_000_000  # of eight digits, from 10,000,000 on
FIRST_NUMBER: Final = 10_000_000
HOUR: Final = 3_600  # seconds; what is announced for a number changes with it
BORDER: Final = 600  # seconds before and after an hour's begin, in which whoever comes tries both: a code lives so long
COST: Final = 1 << 17  # scrypt's N: half a second and 128 MB here, two seconds on a small computer


class Stretch(NamedTuple):
    """An order: compute `secret_of` this, which takes a while, and hand it in."""

    number: int
    hour: int  # since 1970
    cost: int = COST


def secret_of(order: Stretch) -> bytes:
    """32 bytes.  Blocks for half a second."""
    text = b"%d %d" % (order.number, order.hour)
    salt = b"ptunnel dht 1"
    return hashlib.scrypt(text, salt=salt, n=order.cost, r=8, p=1, maxmem=132 * order.cost * 8 + (1 << 20), dklen=32)


def hours_to_try(unix_time: float) -> list[int]:
    """In which a code that is told now may have been made, the likeliest first."""
    hour, rest = divmod(int(unix_time), HOUR)
    if rest < BORDER:
        return [hour, hour - 1]
    return [hour, hour + 1] if rest >= HOUR - BORDER else [hour]
