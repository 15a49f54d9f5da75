"""Reading requests: every byte of them is a stranger's."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.gateway import request as reading
from daemon.api.gateway.ranges import MAX_RANGES, ByteRange, read_ranges
from daemon.api.gateway.refusal import Refusal
from daemon.api.gateway.request import CarWish, DagScope, Format, Span, read_request
from storage.cid import Cid

CID = str(Cid.of(b"x"))
PATH = f"/ipfs/{CID}".encode()


def read(path=PATH, query=b"", **headers):
    return read_request(
        path, query, [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    )


def refused(path=PATH, query=b"", **headers):
    with pytest.raises(Refusal) as caught:
        read(path, query, **headers)
    return caught.value.status


@given(
    st.binary(max_size=60), st.binary(max_size=60), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)))
)
def test_any_bytes_are_read_or_refused(path, query, headers):
    asked = None
    with suppress(Refusal):
        asked = read_request(b"/ipfs/" + path, query, headers)
    if asked is not None:
        assert not any(part in ("", ".", "..") or "/" in part or "\0" in part for part in asked.segments)


def test_names_are_decoded_once_and_alone():
    asked = read(PATH + b"/a%2520b/%C4%85//%FF/")
    assert asked.segments == ("a%20b", "ą", "\udcff")
    assert asked.has_slash


@pytest.mark.parametrize("path", [b"/..", b"/a/../b", b"/%2e%2e/b", b"/.", b"/a%2Fb", b"/a%2F..%2Fb", b"/a%00"])
def test_no_name_leads_upwards_or_hides_a_separator(path):
    assert refused(PATH + path) == 400


@pytest.mark.parametrize(
    "path", [b"", b"/", b"/ipfs", b"/ipfs/", b"/ipfs//x", b"/ipld/x", b"ipfs/x", b"//ipfs/x", b"*"]
)
def test_what_is_no_content_path_is_not_found(path):
    assert refused(path) == 404


def test_a_path_has_a_longest_form_a_deepest_and_one_alphabet():
    assert refused(PATH + b"/" + b"a" * reading.MAX_PATH_BYTES) == 414
    assert refused(query=b"a" * (reading.MAX_QUERY_BYTES + 1)) == 414
    assert refused(PATH + b"/a" * (reading.MAX_SEGMENTS + 1)) == 400
    assert len(read(PATH + b"/a" * reading.MAX_SEGMENTS).segments) == reading.MAX_SEGMENTS
    assert refused(PATH + b"/\xff") == 400
    assert refused(query=b"&".join([b"a=1"] * (reading.MAX_PARAMS + 1))) == 400
    assert refused(query=b"filename=%ff") == 400


@pytest.mark.parametrize(
    ("accept", "formats"),
    [
        ("", (Format.PLAIN,)),
        ("*/*", (Format.PLAIN,)),
        ("text/html,application/xhtml+xml,*/*;q=0.8", (Format.PLAIN,)),
        ("application/vnd.ipld.raw", (Format.RAW,)),
        ("text/html;q=0.5, application/vnd.ipld.car;version=1;q=0.9", (Format.CAR, Format.PLAIN)),
        ("application/json, text/plain, */*", (Format.JSON, Format.PLAIN)),
        ("application/vnd.ipld.raw;q=0, */*;q=0.1", (Format.PLAIN,)),
        ("application/vnd.ipld.raw;q=high", (Format.PLAIN,)),
        ("application/x-tar, */*", (Format.PLAIN,)),
    ],
)
def test_the_best_accepted_form_comes_first(accept, formats):
    assert read(accept=accept).formats == formats


def test_the_url_decides_over_the_header():
    assert read(query=b"format=raw", accept="application/vnd.ipld.car").formats == (Format.RAW,)
    assert refused(query=b"format=tar") == 406
    assert refused(accept="application/x-tar") == 406


@pytest.mark.parametrize(
    ("query", "wish"),
    [
        (b"", CarWish()),
        (b"dag-scope=block", CarWish(scope=DagScope.BLOCK)),
        (b"entity-bytes=0:*", CarWish(scope=DagScope.ENTITY, span=Span(0, None))),
        (b"entity-bytes=-5:-2&dag-scope=entity", CarWish(scope=DagScope.ENTITY, span=Span(-5, -2))),
        (b"car-dups=y&car-order=unk&car-version=1", CarWish(has_duplicates=True)),
        (b"car-dups=y&car-dups=n", CarWish(has_duplicates=True)),
    ],
)
def test_a_car_is_wished_for(query, wish):
    assert read(query=query).car == wish


@pytest.mark.parametrize(
    "query",
    [
        b"dag-scope=some",
        b"entity-bytes=5",
        b"entity-bytes=5:3",
        b"entity-bytes=-2:-5",
        b"entity-bytes=*:5",
        b"entity-bytes=0:9999999999999999999",
        b"car-version=2",
        b"car-order=bfs",
        b"car-dups=maybe",
        b"filename=" + b"a" * 256,
    ],
)
def test_what_is_not_well_formed_is_refused(query):
    assert refused(query=query) == 400


def test_a_version_of_car_in_the_header_is_refused_too():
    assert refused(accept="application/vnd.ipld.car; version=2") == 400


def test_service_workers_are_refused():
    assert refused(service_worker="script") == 400


def test_headers_of_one_name_are_joined():
    asked = read_request(PATH, b"", [(b"If-None-Match", b'"a"'), (b"if-none-match", b'"b"')])
    assert asked.if_none_match == '"a", "b"'


def test_a_filename_keeps_nothing_that_means_something_to_a_header_or_a_disk():
    assert read(query=b"filename=..%2Fa%22%0D%0Ab%5C.txt").filename == ".._a___b_.txt"


def test_the_place_without_an_accept_header_says_the_format_and_keeps_the_rest():
    asked = read(query=b"dag-scope=block", accept="application/vnd.ipld.car")
    assert asked.location_as(Format.CAR) == f"{PATH.decode()}?format=car&dag-scope=block"
    assert read(query=b"format=car").location_as(Format.CAR) is None


@given(st.integers(-50, 50), st.none() | st.integers(-50, 50), st.integers(0, 40))
def test_a_span_lies_within_its_entity_or_is_empty(first, last, n_bytes):
    begin, end = Span(first, last).of(n_bytes)
    assert 0 <= begin <= end
    assert end <= max(n_bytes, begin)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4), st.integers(1, 25))
def test_ranges_lie_within_the_file(pairs, n_total):
    header = "bytes=" + ", ".join(f"{first}-{last}" for first, last in pairs)
    if all(first >= n_total for first, _ in pairs) and all(first <= last for first, last in pairs):
        with pytest.raises(Refusal) as refused:
            read_ranges(header, n_total)
        assert refused.value.headers == (("Content-Range", f"bytes */{n_total}"),)
        return
    found = read_ranges(header, n_total)
    assert all(0 <= one.first < one.end <= n_total for one in found)
    assert sum(one.n_bytes for one in found) <= n_total


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-4", [ByteRange(0, 5)]),
        ("bytes=5-", [ByteRange(5, 10)]),
        ("bytes=-3", [ByteRange(7, 10)]),
        ("bytes=-99", [ByteRange(0, 10)]),
        ("bytes=8-99", [ByteRange(8, 10)]),
        ("bytes=6-7, 0-1, 99-", [ByteRange(6, 8), ByteRange(0, 2)]),
        (None, []),
        ("lines=0-4", []),
        ("bytes=", []),
        ("bytes=-", []),
        ("bytes=4-2", []),
        ("bytes=a-b", []),
        ("bytes=0-9,0-9", []),
        ("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), []),
    ],
)
def test_a_range_header_is_read_or_ignored(header, found):
    assert read_ranges(header, 10) == found
