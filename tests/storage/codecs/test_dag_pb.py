"""DAG-PB: written in one form, read strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blockstore import MAX_BLOCK_BYTES
from storage.cid import Cid
from storage.codecs import CODECS, codec_of, dag_pb, links
from storage.codecs.dag_pb import MAX_TSIZE, PbLink, PbNode
from storage.errors import InvalidBlock, StorageError, TooLarge, UnknownCodec

LINK = Cid.of(b"x")
HASH = b"\x0a\x24" + LINK


def link_field(body: bytes) -> bytes:
    return b"\x12" + bytes([len(body)]) + body


def test_links_stand_before_data() -> None:
    names = ["", "Z", "a", "aa", "b", "é"]
    node = PbNode(b"data", tuple(PbLink(LINK, name, number) for number, name in enumerate(names)))
    data = dag_pb.encode(node)
    assert data.endswith(b"\x0a\x04data")
    assert dag_pb.decode(data) == node


def test_links_that_are_not_sorted_by_the_bytes_of_their_names_are_read_but_not_written() -> None:
    foreign = link_field(HASH + b"\x12\x01b") + link_field(HASH + b"\x12\x01a")
    node = dag_pb.decode(foreign)
    assert [link.name for link in node.links] == ["b", "a"]
    with pytest.raises(InvalidBlock, match="order of names"):
        dag_pb.encode(node)


def test_links_of_one_name_keep_their_order() -> None:
    cids = [Cid.of(bytes([number])) for number in range(9)]
    data = dag_pb.encode(PbNode(None, tuple(PbLink(cid) for cid in cids)))
    assert dag_pb.links(data) == cids


def test_an_empty_name_is_written_and_an_absent_one_is_not() -> None:
    assert b"\x12\x00" in dag_pb.encode(PbNode(None, (PbLink(LINK, ""),)))
    assert dag_pb.encode(PbNode(None, (PbLink(LINK, None),))) == link_field(HASH)
    assert dag_pb.decode(link_field(HASH)).links == (PbLink(LINK, None, None),)


def test_data_before_links_is_read() -> None:
    assert dag_pb.decode(b"\x0a\x01d" + link_field(HASH)) == PbNode(b"d", (PbLink(LINK, None),))


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    data = link_field(HASH + b"\x12\x02\xff\xfe")
    assert dag_pb.encode(dag_pb.decode(data)) == data


@pytest.mark.parametrize(
    "bad",
    [
        b"\x12",
        b"\x0a\x05ab",
        b"\x1a\x00",  # an unknown field
        b"\x08\x01",
        b"\x0a\x01a\x0a\x01b",  # data twice
        link_field(HASH) + b"\x0a\x01d" + link_field(HASH),
        link_field(b"\x12\x00" + HASH),  # the name before the CID
        link_field(HASH + b"\x18\x01\x12\x00"),  # the size before the name
        link_field(HASH + b"\x18\x01\x18\x01"),
        link_field(HASH + b"\x18\x80\x00"),  # a size that is not minimal
        link_field(HASH + b"\x20\x01"),
        link_field(HASH[:-1]),
        link_field(b"\x0a\x04abcd"),
        link_field(b"\x0a\x00"),
        b"\x0a\x80\x00",
        b"\x0a" + b"\xff" * 10,
    ],
)
def test_what_is_not_in_the_strict_form_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidBlock):
        dag_pb.decode(bad)


@pytest.mark.parametrize(
    "bad", [PbLink(LINK, "", -1), PbLink(LINK, "", MAX_TSIZE + 1), PbLink(LINK, "\ud800"), PbLink(b"x" * 36, "")]
)
def test_a_link_without_a_form_is_not_written(bad: PbLink) -> None:
    with pytest.raises(InvalidBlock):
        dag_pb.encode(PbNode(None, (bad,)))


def test_size_is_capped_in_both_directions() -> None:
    with pytest.raises(TooLarge):
        dag_pb.encode(PbNode(bytes(MAX_BLOCK_BYTES)))
    with pytest.raises(TooLarge):
        dag_pb.decode(bytes(MAX_BLOCK_BYTES + 1))


def test_a_block_is_refused_truncated_inside_any_field() -> None:
    fields = [link_field(HASH + b"\x12\x01n\x18\x05"), link_field(HASH), b"\x0a\x04data"]
    data = b"".join(fields)
    whole = {0, len(fields[0]), len(fields[0] + fields[1]), len(data)}
    for end in range(len(data) + 1):
        if end in whole:
            dag_pb.decode(data[:end])
        else:
            with pytest.raises(InvalidBlock):
                dag_pb.decode(data[:end])


PB_LINKS = st.builds(
    PbLink, st.binary(max_size=9).map(Cid.of), st.none() | st.text(max_size=9), st.none() | st.integers(0, MAX_TSIZE)
)


@given(st.none() | st.binary(max_size=50), st.lists(PB_LINKS, max_size=9))
def test_every_node_comes_back(data: bytes | None, made: list[PbLink]) -> None:
    node = PbNode(data, tuple(sorted(made, key=lambda link: dag_pb.name_bytes(link.name))))
    assert dag_pb.decode(dag_pb.encode(node)) == node


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        node = dag_pb.decode(data)
        again = dag_pb.encode(node)
    except StorageError:
        return
    assert dag_pb.decode(again) == node


def test_every_codec_is_found_by_its_file() -> None:
    assert sorted(codec.name for codec in CODECS.values()) == ["dag-cbor", "dag-json", "dag-pb", "raw"]


def test_an_unknown_codec_is_refused_rather_than_taken_for_a_leaf() -> None:
    cid = Cid.of(b"x", 0x78)
    with pytest.raises(UnknownCodec, match="0x78"):
        codec_of(cid)
    with pytest.raises(UnknownCodec):
        links(cid, b"x")


def test_raw_blocks_are_themselves_and_have_no_links() -> None:
    cid = Cid.of(b"raw")
    assert codec_of(cid).decode(b"raw") == codec_of(cid).encode(b"raw") == b"raw"
    assert links(cid, b"raw") == []
