"""The messages of AutoNAT: as another implementation reads and writes them, and nothing that is none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from protocols.autonat.wire import (
    MAX_ENDPOINTS,
    MAX_FIELDS,
    Ask,
    Status,
    Told,
    read_ask,
    read_told,
    write_ask,
    write_told,
)
from protocols.endpoints import Endpoint
from protocols.errors import Malformed
from storage.keys import Identity

PEER = Identity(bytes(32)).peer_id
HERE = Endpoint("8.8.8.8", 4701)


@given(st.lists(st.builds(Endpoint, st.ip_addresses(v=4).map(str), st.integers(1, 65535)), unique=True, max_size=20))
def test_what_is_written_is_read_again(endpoints: list[Endpoint]) -> None:
    assert read_ask(write_ask(PEER, endpoints)) == Ask(PEER, tuple(endpoints[:MAX_ENDPOINTS]))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_to_be_refused(data: bytes) -> None:
    for read in (read_ask, read_told):
        with suppress(Malformed):
            read(data)


def test_py_libp2p_reads_and_writes_the_same_bytes() -> None:
    from libp2p.host.autonat.pb import autonat_pb2 as theirs

    message = theirs.Message.FromString(write_ask(PEER, [HERE]))
    assert message.type == theirs.Message.DIAL
    assert message.dial.peer.id == bytes(PEER)
    assert [str(Multiaddr(each)) for each in message.dial.peer.addrs] == [HERE.text]
    addresses = [f"{HERE.text}/p2p/{PEER}", "/ip4/1.2.3.4/udp/1/quic-v1", "/dns4/a.example/tcp/1", "/ip6/::1/tcp/9"]
    message.dial.peer.addrs[:] = [Multiaddr(text).to_bytes() for text in addresses]
    assert read_ask(message.SerializeToString()) == Ask(PEER, (HERE, Endpoint("::1", 9)))
    told = theirs.Message.FromString(write_told(Told(Status.OK, HERE)))
    assert (told.type, told.dialResponse.status) == (theirs.Message.DIAL_RESPONSE, theirs.Message.OK)
    assert str(Multiaddr(told.dialResponse.addr)) == HERE.text
    told.dialResponse.status = theirs.Message.E_DIAL_ERROR
    told.dialResponse.statusText = "no"
    told.dialResponse.ClearField("addr")
    assert read_told(told.SerializeToString()) == Told(Status.DIAL_ERROR)
    assert {f"E_{each.name}" if each else each.name: each.value for each in Status} == dict(
        theirs.Message.ResponseStatus.items()
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x01\x12\x02\x0a\x00",  # an answer's kind
        b"\x08\x00",  # nothing in it
        b"\x08\x00\x12\x00",  # nobody asks
        b"\x08\x00\x10\x01",  # a number for a question
        b"\x08\x00\x12\x05\x0a\x03\x0a\x01\x00",  # an id that is none
        b"\x08\x00\x12\x04\x0a\x02\x10\x01",  # a number for an address
        b"\x08\x00\x12\x02\x0a\x00" + b"\x30\x01" * MAX_FIELDS,  # too many fields
    ],
)
def test_what_is_no_question_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_ask(data)


@pytest.mark.parametrize("data", [b"", b"\x08\x01", b"\x08\x01\x1a\x00", b"\x08\x00\x1a\x02\x08\x00"])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_told(data)
