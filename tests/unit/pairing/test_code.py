from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.crypto.helpers import Entropy
from tunnel.errors import ConfigurationError
from tunnel.pairing.code import (
    MAX_TEXT,
    Code,
    Purpose,
    _split_words,
    complete,
    looks_like_code,
    make_code,
    parse_code,
    require_purpose,
)
from tunnel.pairing.words import WORDS


def test_there_are_2048_words_that_four_letters_tell_apart() -> None:
    assert len(WORDS) == len({word[:4] for word in WORDS}) == 2048
    assert all(word.isascii() and word.islower() and word.isalpha() for word in WORDS)


def test_a_code_is_a_number_and_words_from_all_of_the_list() -> None:
    assert make_code(731, lambda _: b"\x00\x00") == "731-abandon-abandon"
    assert make_code(7, lambda _: b"\xff\xff", words=3) == "007-zoo-zoo-zoo"
    entropy = Entropy(1)
    seen = {word for _ in range(4000) for word in make_code(123, entropy).split("-")[1:]}
    assert len(seen) > 1900
    with pytest.raises(ValueError):
        make_code(10**9, entropy)
    with pytest.raises(ValueError):
        make_code(123, entropy, words=1)


@pytest.mark.parametrize(
    "text",
    [
        "731-garden-violin",
        " 731 Garden  VIOLIN \n",
        "731--garden_violin",
        "731.garden, violin",
        "731–garden—violin",
        "\uff17\uff13\uff11-garden-violin",
    ],
)
def test_a_code_may_be_typed_in_many_ways(text: str) -> None:
    assert parse_code(text) == Code(731, "garden-violin")
    assert str(parse_code(text)) == "731-garden-violin"
    assert looks_like_code(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "731-garden-violin"),
        ("   ", "731-garden-violin"),
        ("garden-violin", "begins with a number"),
        ("73-garden-violin", "three to nine digits"),
        ("7310000000-garden-violin", "three to nine digits"),
        ("731", "at least two words"),
        ("731-garden", "at least two words"),
        ("731-garden-violni", "did you mean 'violin'"),
        ("731-garden-xqxqxq", "other screen"),
        ("731-" + "-".join(["zoo"] * 9), "at least two words"),
        ("731-garden-\x1b[2J", "other screen"),
        ("731-garden-violin" + " " * 300, "731-garden-violin"),
        ("²²²-garden-violin-\U0001d7d9", "other screen"),
    ],
)
def test_a_bad_code_gets_one_sentence(text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_code(text)
    sentence = str(caught.value)
    assert hint in sentence
    assert sentence.isprintable()
    assert sentence[-1] in ".?"


@pytest.mark.parametrize("text", ["731-gardn-violni", "12345 a b", "731-one-two-three"])
def test_misspelt_codes_still_look_like_codes(text: str) -> None:
    assert looks_like_code(text)


@pytest.mark.parametrize("text", ["home", "7-eleven", "731", "nas-2-b", "2222:22", "192.168.1.5", "731-4-5", ""])
def test_names_and_ports_do_not_look_like_codes(text: str) -> None:
    assert not looks_like_code(text)


def test_a_code_stays_out_of_logs() -> None:
    assert "garden" not in repr(parse_code("731-garden-violin"))


def test_tab_completes_the_word_begun() -> None:
    assert complete("731-garden-viol") == ["731-garden-violin"]
    assert complete("731-GARD") == ["731-garden"]
    assert len(complete("731-")) == 2048
    assert complete("73") == complete("") == complete("x-gard") == complete("-") == []


@pytest.mark.parametrize(
    "text",
    ["731gardenviolin", "731-gardenviolin", "731 GardenViolin", "731garden-violin", "731garden violin", "731 gardenviolin."],
)
def test_a_code_without_hyphens_is_read_where_that_is_plain(text: str) -> None:
    assert parse_code(text) == Code(731, "garden-violin")
    assert looks_like_code(text)


def test_a_rooms_code_without_hyphens_is_read_too() -> None:
    assert str(parse_code("452nucleardigitalgarden")) == "452-nuclear-digital-garden"


@pytest.mark.parametrize("text", ["731-sunset", "731gardenviolni", "731gardenviolinx", "731garden", "731-" + "zoo" * 9])
def test_what_is_no_row_of_words_is_not_taken_apart(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_code(text)


def test_two_readings_are_asked_about_and_not_chosen_from() -> None:
    two = next(
        f"{first}{second}"
        for first in WORDS
        for second in WORDS
        if len(_split_words(f"{first}{second}")) > 1 and f"{first}{second}" not in WORDS
    )
    assert looks_like_code(f"731-{two}")
    with pytest.raises(ConfigurationError, match="put hyphens between its words"):
        parse_code(f"731-{two}")


def test_words_that_stand_apart_are_taken_as_they_are() -> None:
    with pytest.raises(ConfigurationError, match="No code has the word 'iceman'"):
        parse_code("731-garden-iceman")


@given(st.text(max_size=300) | st.text("abcdefghijklmnopqrstuvwxyz", max_size=220).map("731".__add__))
def test_whatever_is_typed_is_a_code_or_a_sentence(text: str) -> None:
    looks_like_code(text)
    try:
        code = parse_code(text)
    except ConfigurationError as error:
        sentence = str(error)
    else:
        sentence = str(code)
        assert parse_code(sentence) == code
    assert sentence.isprintable()


@pytest.mark.parametrize(
    ("text", "purpose"),
    [("731-zoo-zoo", Purpose.PORTS), ("731-zoo-zoo-zoo", Purpose.ROOM), ("731-zoo-zoo-zoo-zoo", None)],
)
def test_the_number_of_words_says_what_a_code_is_for(text: str, purpose: Purpose | None) -> None:
    code = parse_code(text)
    assert code.purpose is purpose
    for wanted in Purpose:
        if purpose in (wanted, None):
            require_purpose(code, wanted)
        else:
            with pytest.raises(ConfigurationError, match=r"run '.*--server rv"):
                require_purpose(code, wanted, "rv")


def test_what_is_longer_than_any_code_is_none() -> None:
    text = "731-garden-violin".ljust(MAX_TEXT)
    assert parse_code(text) == parse_code("731-garden-violin")
    with pytest.raises(ConfigurationError, match="A code looks like"):
        parse_code(text + " ")
