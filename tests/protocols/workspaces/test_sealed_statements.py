"""Statements in boxes: what comes out is what went in, lengths tell little, and no bytes harm who opens them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.workspaces.entries import Commit, Propose, Put, Rekey, Say
from protocols.workspaces.sealed import (
    MIN_PADDED_BYTES,
    Box,
    has_exchange_key,
    new_key,
    open_key,
    pad,
    padded_length,
    seal,
    unpad,
    unseal,
)  # fmt: skip
from protocols.workspaces.sealed import (
    given as given_keys,
)
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.errors import BadRecipient
from storage.keys import Identity, PeerId
from storage.sealed.keys import commitment, derive, encrypt

WORKSPACE, EPOCH = Cid.of(b"workspace", DAG_CBOR), Cid.of(b"epoch", DAG_CBOR)
KEY = bytes(range(32))
ANN, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
TWO = Propose(key="a", text="", options=("1", "2"), rule="majority", closers=(ANN.peer_id,))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(value=VALUES)
def test_what_was_sealed_comes_out_again_for_who_has_the_key(value):
    says = Put(key="a", value=value, link=EPOCH)
    box = seal(says, WORKSPACE, EPOCH, KEY, os.urandom)
    assert unseal(Put(key="a"), box, WORKSPACE, KEY) == says
    assert unseal(Put(key="a"), box, WORKSPACE, bytes(32)) is None
    assert unseal(Put(key="a"), box, EPOCH, KEY) is None


@given(n_bytes=st.integers(0, 1 << 17))
def test_padding_adds_an_eighth_at_most_and_leaves_few_lengths(n_bytes):
    length = padded_length(n_bytes)
    assert max(n_bytes, MIN_PADDED_BYTES) <= length <= max(MIN_PADDED_BYTES, n_bytes * 1.13)
    assert padded_length(length) == length
    data = bytes(min(n_bytes, 500))
    assert unpad(pad(data)) == data


def test_all_lengths_up_to_64_kib_come_to_a_few_hundred():
    assert len({padded_length(number) for number in range(1 << 16)}) < 300


@given(data=st.binary(max_size=200))
def test_no_bytes_are_padded_but_those_that_pad_gives(data):
    plain = unpad(data)
    assert plain is None or pad(plain) == data


@given(plain=st.binary(max_size=200) | VALUES.map(dag_cbor.encode))
def test_what_a_member_seals_that_is_no_statement_does_not_open(plain):
    bound = dag_cbor.encode([WORKSPACE, "put", EPOCH])
    box = Box(epoch=EPOCH, nonce=bytes(24), box=encrypt(derive(KEY, b"covey-ws-entry-1"), bytes(24), pad(plain), bound))
    opened = unseal(Put(key="a"), box, WORKSPACE, KEY)
    assert opened is None or isinstance(opened, Put)


@pytest.mark.parametrize(
    ("says", "fields"),
    [
        (Say(key="a", text=""), {"text": 5}),
        (Say(key="a", text=""), {"text": "x" * 16385}),
        (Say(key="a", text=""), {"text": "x", "key": "b"}),
        (Put(key="a"), {"value": 1}),
        (Put(key="a"), {"value": 1, "link": "no link"}),
        (Commit(claim=EPOCH, step=0), {"output": 1, "link": None, "step": 1}),
        (TWO, {"text": "?", "options": ["x"]}),
        (TWO, {"text": "?", "options": ["x", "y", "z"]}),
        (TWO, {"text": "?", "options": 5}),
        (TWO, {"text": "?", "options": [["x"], {}]}),
    ],
)  # fmt: skip
def test_what_is_outside_its_limits_does_not_open_either(says, fields):
    bound = dag_cbor.encode([WORKSPACE, says.kind, EPOCH])
    padded = pad(dag_cbor.encode(fields))
    box = Box(epoch=EPOCH, nonce=bytes(24), box=encrypt(derive(KEY, b"covey-ws-entry-1"), bytes(24), padded, bound))
    assert unseal(says, box, WORKSPACE, KEY) is None


def test_a_key_is_for_those_it_was_wrapped_for_and_fits_its_commitment():
    rekey = new_key(WORKSPACE, [ANN.peer_id], os.urandom)
    ((peer, wrapped),) = rekey.wraps
    key = open_key(WORKSPACE, rekey, wrapped, ANN)
    assert peer == ANN.peer_id and key is not None and commitment(key) == rekey.commitment
    assert open_key(WORKSPACE, rekey, wrapped, BOB) is None
    give = given_keys(WORKSPACE, BOB.peer_id, {EPOCH: key}, os.urandom)
    assert open_key(WORKSPACE, rekey, give.keys[0][1], BOB) == key
    other = Rekey(commitment=bytes(32), wraps=rekey.wraps)
    assert open_key(WORKSPACE, other, wrapped, ANN) is None
    for bad in (bytes(80), wrapped[:32] + bytes(48), bytes(32) + wrapped[32:]):
        assert open_key(WORKSPACE, rekey, bad, ANN) is None


def test_nothing_is_sealed_to_a_peer_without_a_good_key():
    stranger = PeerId.of(bytes(32))
    assert has_exchange_key(ANN.peer_id) and not has_exchange_key(stranger)
    with pytest.raises(BadRecipient):
        new_key(WORKSPACE, [ANN.peer_id, stranger], os.urandom)
