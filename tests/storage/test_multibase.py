"""Multibase: each base as another library writes it, and one text for each value."""

import multiformats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.multibase import MAX_TEXT, NAMES, PREFIXES, base58_decode, base58_encode, decode, encode

BASES = sorted(NAMES)


@pytest.mark.parametrize("name", BASES)
@given(data=st.binary(max_size=60))
def test_bytes_come_back_and_agree_with_another_library(name: str, data: bytes) -> None:
    text = encode(data, name)
    assert decode(text) == data
    expected = multiformats.multibase.encode(data, name)
    assert text == (expected.rstrip("=") if name == "base8" else expected)  # which pads it, against the table


def test_zero_bytes_at_the_front_are_kept() -> None:
    for name in BASES:
        for data in (b"", b"\0", b"\0\0\1"):
            assert decode(encode(data, name)) == data


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("base8", "7362625631006654133464440102"),
        ("base2", "001111001011001010111001100100000011011010110000101101110011010010010000000100001"),
        ("base10", "9573277761329450583662625"),
        ("base16", "f796573206d616e692021"),
        ("base32z", "hxf1zgedpcfzg1ebb"),
        ("base36", "k2lcpzo5yikidynfl"),
        ("base58flickr", "Z7Pznk19XTTzBtx"),
        ("base64pad", "MeWVzIG1hbmkgIQ=="),
    ],
)
def test_published_vectors(name: str, text: str) -> None:
    assert encode(b"yes mani !", name) == text
    assert decode(text) == b"yes mani !"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "p1",
        "\0abc",
        "fAB",  # the other case
        "Fab",
        "bMY",
        "Bmy",
        "KAb",
        "kAB",
        "f0",  # half a byte
        "01111111",
        "02",
        "bmz",  # bits left over
        "bm",
        "bmyz",
        "mAB",
        "mA",
        "7001",
        "bmy======",  # padding where there is none
        "cmy",  # none where there is one
        "cmy=====",
        "cmy=======",
        "c========",
        "mAA==",
        "MAA",
        "MAA=",
        "MAB==",
        "M====",
        "m-_8",  # digits of the other alphabet
        "u+/8",
        "b1y",
        "z0",
        "zl",
        "hl",
        "9a",
        "9-1",
        "f+1",  # what Python takes for a number
        "f1_1",
        "f 11",
        "f\u0661\u0661",
        "mA A=",
        "m\u00e9",
        "f" + "0" * MAX_TEXT,
    ],
)
def test_what_is_not_the_one_text_of_its_bytes_is_refused(bad: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(bad)


def test_an_unknown_base_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="base31"):
        encode(b"", "base31")


@given(st.sampled_from(sorted(PREFIXES)), st.text("0123456789abcXYZ=+-_/", max_size=30))
def test_any_text_is_the_one_text_of_its_bytes_or_refused(prefix: str, rest: str) -> None:
    try:
        data = decode(prefix + rest)
    except ValueError:
        return
    assert encode(data, PREFIXES[prefix].name) == prefix + rest


@given(st.binary(max_size=40))
def test_base58_comes_back(data: bytes) -> None:
    assert base58_decode(base58_encode(data)) == data
