"""The messages of relays: as another implementation reads and writes them, and nothing that is none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import Malformed
from protocols.relay.wire import HOP_FORM, MAX_FIELDS, STOP_FORM, Form, Kind, Limit, Message, Status, read, write
from storage.keys import Identity

PEER = Identity(bytes(32)).peer_id
NUMBERS = st.integers(0, (1 << 64) - 1)


def messages(form: Form) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        st.sampled_from(form.kinds),
        st.none() | st.binary(min_size=32, max_size=32).map(lambda seed: Identity(seed).peer_id),
        (st.none() | NUMBERS) if form.reservation else st.none(),
        st.none() | st.builds(Limit, NUMBERS, NUMBERS),
        st.none() | NUMBERS,
    )


@given(st.data(), st.sampled_from([HOP_FORM, STOP_FORM]))
def test_what_is_written_is_read_again(data: st.DataObject, form: Form) -> None:
    message = data.draw(messages(form))
    assert read(form, write(form, message)) == message


@given(st.binary(max_size=200), st.sampled_from([HOP_FORM, STOP_FORM]))
def test_no_bytes_do_more_than_to_be_refused(data: bytes, form: Form) -> None:
    with suppress(Malformed):
        read(form, data)


def test_py_libp2p_reads_and_writes_the_same_bytes() -> None:
    from libp2p.relay.circuit_v2.pb import circuit_pb2 as theirs

    asked = theirs.HopMessage(type=theirs.HopMessage.CONNECT, peer=theirs.PeerId(id=bytes(PEER), addrs=[b"x"]))
    assert read(HOP_FORM, asked.SerializeToString()) == Message(Kind.CONNECT, PEER)
    ours = Message(Kind.STATUS, None, 1_800_000_000, Limit(120, 1 << 17), Status.OK)
    told = theirs.HopMessage.FromString(write(HOP_FORM, ours))
    assert (told.type, told.status) == (theirs.HopMessage.STATUS, theirs.OK)
    assert (told.reservation.expire, told.limit.duration, told.limit.data) == (1_800_000_000, 120, 1 << 17)
    brought = theirs.StopMessage.FromString(write(STOP_FORM, Message(Kind.CONNECT, PEER, limit=Limit(1, 2))))
    assert (brought.type, brought.peer.id, brought.limit.data) == (theirs.StopMessage.CONNECT, bytes(PEER), 2)
    assert read(STOP_FORM, theirs.StopMessage(type=1, status=203).SerializeToString()).status == 203
    assert {each.value: each.name for each in Status} == {
        number: name for name, number in theirs.Status.items() if number
    }


def test_every_cut_of_a_message_is_refused_or_a_shorter_message() -> None:
    whole = write(HOP_FORM, Message(Kind.CONNECT, PEER))
    for end in range(len(whole)):
        try:
            found = read(HOP_FORM, whole[:end])
        except Malformed:
            continue
        assert found == Message(Kind.CONNECT) and end == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",  # no kind
        b"\x08\x03",  # an unknown kind
        b"\x0a\x01\x00",  # bytes for a kind
        b"\x08\x01\x10\x01",  # a number for a peer
        b"\x08\x01\x12\x00",  # a peer without an id
        b"\x08\x01\x12\x03\x0a\x01\x00",  # an id that is none
        b"\x08\x02\x2a\x01\x00",  # bytes for a status
        b"\x08\x02\x18\x01",  # a number for a reservation
        b"\x08\x02\x20\x01",  # a number for a limit
        b"\x08\x02" + b"\x30\x01" * MAX_FIELDS,  # too many fields
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        read(HOP_FORM, data)


def test_a_number_that_no_field_holds_is_not_written() -> None:
    with pytest.raises(Malformed):
        write(HOP_FORM, Message(Kind.STATUS, status=-1))
