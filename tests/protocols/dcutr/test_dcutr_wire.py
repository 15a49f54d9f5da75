"""The messages of DCUtR: as another implementation reads and writes them, and nothing that is none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from protocols.dcutr.wire import MAX_ENDPOINTS, MAX_FIELDS, Kind, Message, read, write
from protocols.endpoints import Endpoint
from protocols.errors import Malformed

HERE, THERE = Endpoint("8.8.8.8", 4701), Endpoint("2606:4700::1", 4001)
PUBLIC = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(1, 65535)).filter(lambda each: each.is_public)


@given(st.sampled_from(Kind), st.lists(PUBLIC, unique=True, max_size=MAX_ENDPOINTS + 2))
def test_what_is_written_is_read_again(kind: Kind, endpoints: list[Endpoint]) -> None:
    assert read(write(kind, endpoints)) == Message(kind, tuple(endpoints[:MAX_ENDPOINTS]))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_to_be_refused(data: bytes) -> None:
    with suppress(Malformed):
        assert len(read(data).endpoints) <= MAX_ENDPOINTS


def test_py_libp2p_reads_and_writes_the_same_bytes() -> None:
    from libp2p.relay.circuit_v2.pb import dcutr_pb2 as theirs

    message = theirs.HolePunch.FromString(write(Kind.CONNECT, [HERE, THERE]))
    assert message.type == theirs.HolePunch.CONNECT
    assert [str(Multiaddr(each)) for each in message.ObsAddrs] == [HERE.text, THERE.text]
    assert theirs.HolePunch.FromString(write(Kind.SYNC)).type == theirs.HolePunch.SYNC
    message.ObsAddrs.append(Multiaddr("/ip4/8.8.8.8/udp/1/quic-v1").to_bytes())
    assert read(message.SerializeToString()) == Message(Kind.CONNECT, (HERE, THERE))


def test_addresses_that_not_everybody_reaches_are_left_out() -> None:
    near = [Endpoint(host, 22) for host in ("192.168.1.1", "127.0.0.1", "::1")]
    assert read(write(Kind.CONNECT, [*near, HERE])).endpoints == (HERE,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\x01",  # an unknown kind
        b"\x0a\x01\x64",  # bytes for a kind
        b"\x08\x64\x10\x01",  # a number for an address
        b"\x08\x64" + b"\x30\x01" * MAX_FIELDS,  # too many fields
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read(data)
