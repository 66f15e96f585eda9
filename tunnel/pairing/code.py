"""Pairing codes, `731-garden-violin`: a nameplate that the server knows, and words that it must never see."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Final

from tunnel.errors import ConfigurationError
from tunnel.notation import printable

MIN_NAMEPLATE_DIGITS: Final = 3
MAX_NAMEPLATE_DIGITS: Final = 9
MAX_NAMEPLATE: Final = 10**MAX_NAMEPLATE_DIGITS - 1
CODE_WORDS: Final = 2  # of a code for one peer: 22 bits, for one guess
ROOM_CODE_WORDS: Final = 3  # of a code that many may use: 33 bits, for five guesses
MIN_WORDS: Final = CODE_WORDS
MAX_WORDS: Final = 8
MAX_TEXT: Final = 200  # characters that anybody can have meant as a code

_EXAMPLE: Final = "731-garden-violin"
_GLUED: Final = re.compile(r"([0-9]+)([^\W\d_]+)", re.ASCII)
_SEPARATORS: Final = re.compile(r"[\s\-_.,\u2010-\u2015\u2212]+")
_LOOKS_LIKE: Final = re.compile(r"[0-9]{3,}(?:[\s\-_.,\u2010-\u2015\u2212]+[^\W\d_]+){2,}")
_AROUND: Final = (
    " \t\r\n\v\f\u00a0\"'`.,;!<>()\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a"  # what a chat puts around a code
)
_LONGEST_WORD: Final = 8  # letters


@cache
def _words() -> dict[str, None]:
    """All words that codes are made of, in their order: read when the first code is, as most commands meet none."""
    from tunnel.pairing.words import WORDS

    return dict.fromkeys(WORDS)


class Purpose(Enum):
    """The purpose of a code.  It shows in the number of words, for every version; the values go over the wire."""

    PORTS = 1  # reach what was exposed
    ROOM = 2  # be a member of a room


@dataclass(frozen=True, slots=True)
class Code:
    """`password` is the words, lower-case, joined with hyphens.  It stays out of repr: codes must not reach a log."""

    nameplate: int
    password: str

    @property
    def purpose(self) -> Purpose | None:
        """None: it has more words than any code that we make."""
        return {CODE_WORDS: Purpose.PORTS, ROOM_CODE_WORDS: Purpose.ROOM}.get(self.password.count("-") + 1)

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.password}"

    def __repr__(self) -> str:
        return f"Code({self.nameplate}, ...)"


def make_code(nameplate: int, entropy: Callable[[int], bytes], words: int = MIN_WORDS) -> str:
    """A fresh code; `entropy` gives two secret bytes a word, of which eleven bits are used."""
    if not 0 <= nameplate <= MAX_NAMEPLATE or not MIN_WORDS <= words <= MAX_WORDS:
        raise ValueError("a nameplate of at most nine digits and two to eight words")
    known = tuple(_words())
    drawn = (known[int.from_bytes(entropy(2), "big") % len(known)] for _ in range(words))
    return "-".join([str(nameplate).zfill(MIN_NAMEPLATE_DIGITS), *drawn])


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFKC", text[:MAX_TEXT]).casefold().strip()


def looks_like_code(text: str) -> bool:
    """Would a person take this for a code?  True for misspelt ones too, so that names never look like codes."""
    normal = _normalise(split_server(text)[0])
    if _LOOKS_LIKE.fullmatch(normal) is not None:
        return True
    number, *words = _parts(normal) or ("",)
    if not number.isdecimal() or len(number) < MIN_NAMEPLATE_DIGITS:
        return False
    return (
        bool(_split_words(words[0])) if len(words) == 1 else len(words) >= MIN_WORDS and all(word in _words() for word in words)
    )


def split_server(text: str) -> tuple[str, str | None]:
    """`731-taxi-suffer@rv.example.net`: the code, and the server where it waits; None where none is said."""
    code, at, server = text.strip(_AROUND).partition("@")
    return code, server.strip() if at and server.strip() else None


def parse_code(text: str) -> Code:
    """Read what a person typed: any case, and spaces, dots or several hyphens between the parts, or none at all where that can be
    read in one way only.  What stands behind an @ is no part of it (split_server).

    Raises ConfigurationError with one sentence; nothing was sent then, so the code is still good.
    """
    parts = _parts(_normalise(split_server(text)[0]))
    if not parts or len(text) > MAX_TEXT:
        raise ConfigurationError(f"A code looks like {_EXAMPLE}: a number and at least two words.")
    number, words = parts[0], parts[1:]
    if not (number.isascii() and number.isdecimal()):
        raise ConfigurationError(f"A code begins with a number, as in {_EXAMPLE}.")
    if not MIN_NAMEPLATE_DIGITS <= len(number) <= MAX_NAMEPLATE_DIGITS:
        raise ConfigurationError(f"The number of a code has three to nine digits, as in {_EXAMPLE}.")
    if len(words) == 1 and words[0] not in _words():
        readings = _split_words(words[0])
        if len(readings) > 1:
            raise ConfigurationError("That code can be read in several ways: put hyphens between its words.")
        words = readings[0] if readings else words
    for word in words:
        if word not in _words():
            raise ConfigurationError(_unknown_word(word))
    if not MIN_WORDS <= len(words) <= MAX_WORDS:
        raise ConfigurationError(f"A code has at least two words after its number, as in {_EXAMPLE}.")
    return Code(int(number), "-".join(words))


def require_purpose(code: Code, purpose: Purpose, server: str = "HOST") -> None:
    """Raises ConfigurationError with the command that this code is for; nothing was sent then, so the code is still good."""
    if code.purpose in (purpose, None):
        return
    if code.purpose is Purpose.ROOM:
        raise ConfigurationError(f"This is the code of a room: run 'sudo ptunnel lan join --server {server}'.")
    raise ConfigurationError(
        f"This is the code of 'ptunnel expose', and of no room: run 'ptunnel connect --server {server} --forward PORT'."
    )


def _parts(normal: str) -> list[str]:
    """The number and the words, or several of them glued together."""
    parts = [part for part in _SEPARATORS.split(normal) if part]
    glued = _GLUED.fullmatch(parts[0]) if parts else None
    return parts if glued is None else [*glued.groups(), *parts[1:]]


def _split_words(text: str) -> list[list[str]]:
    """The ways to read letters without a gap as MIN_WORDS words or more; two of them at most, as one too many is enough."""
    if len(text) > MAX_WORDS * _LONGEST_WORD:
        return []
    ends: list[list[list[str]]] = [[[]]]  # at each place, the first readings of what stands before it
    for end in range(1, len(text) + 1):
        found: list[list[str]] = []
        for start in range(max(0, end - _LONGEST_WORD), end):
            if text[start:end] in _words():
                found += [[*before, text[start:end]] for before in ends[start] if len(before) < MAX_WORDS]
        ends.append(found[:3])
    return [reading for reading in ends[-1] if len(reading) >= MIN_WORDS][:2]


def _unknown_word(word: str) -> str:
    import difflib

    shown = printable(word)[:24]
    nearest = difflib.get_close_matches(word[:24], _words(), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}" if nearest else "please compare it with the code on the other screen"
    return f"No code has the word {shown!r} in it; {hint}{'?' if nearest else '.'}"


def complete(prefix: str) -> list[str]:
    """Return the continuations of a code up to its next word.  None for the number: only the server knows it."""
    text = prefix.casefold()[:MAX_TEXT]
    head, hyphen, beginning = text.rpartition("-")
    if not hyphen or not head or not head[0].isdigit() or head.count("-") >= MAX_WORDS:
        return []
    return [f"{head}-{word}" for word in _words() if word.startswith(beginning)]
