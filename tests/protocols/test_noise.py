"""Noise's transport messages: against another implementation, cut at any byte, and damaged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import NoiseConnection

from protocols import noise
from protocols.errors import Malformed
from protocols.noise import LENGTH_BYTES, MAX_PLAINTEXT_BYTES, TAG_BYTES, Opener, Sealer

KEY = bytes(range(32))


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_messages_come_out_as_they_went_in_however_the_bytes_arrive(messages: list[bytes], data: st.DataObject) -> None:
    travelling = Sealer(KEY).seal(messages)
    opener = Opener(KEY)
    found = []
    while travelling:
        n_bytes = data.draw(st.integers(1, len(travelling)))
        found += opener.feed(travelling[:n_bytes])
        travelling = travelling[n_bytes:]
    assert found == messages


def test_another_implementation_opens_what_we_seal_and_the_other_way_round() -> None:
    alice, bob = (NoiseConnection.from_name(b"Noise_NN_25519_ChaChaPoly_SHA256") for _ in range(2))
    alice.set_as_initiator()
    bob.set_as_responder()
    for side in (alice, bob):
        side.start_handshake()
    bob.read_message(alice.write_message())
    alice.read_message(bob.write_message())
    assert alice.handshake_finished and bob.handshake_finished
    sending = alice.noise_protocol.cipher_state_encrypt
    sealer = Sealer(sending.k, sending.n)
    for message in (b"", b"hello", bytes(MAX_PLAINTEXT_BYTES)):
        assert bob.decrypt(sealer.seal([message])[LENGTH_BYTES:]) == message
    receiving = alice.noise_protocol.cipher_state_decrypt
    opener = Opener(receiving.k, receiving.n)
    for message in (b"hello", b"again"):
        sealed = bob.encrypt(message)
        assert opener.feed(len(sealed).to_bytes(2, "big") + sealed) == [message]


def test_damage_repetition_and_omission_are_refused() -> None:
    first, second = (Sealer(KEY, number).seal([b"message"]) for number in (0, 1))
    for at in range(LENGTH_BYTES, len(first)):
        damaged = bytearray(first)
        damaged[at] ^= 1
        with pytest.raises(Malformed, match="not sealed"):
            Opener(KEY).feed(bytes(damaged))
    for wrong in (first + first, second, Sealer(KEY[::-1]).seal([b"message"])):
        with pytest.raises(Malformed):
            Opener(KEY).feed(wrong)


@pytest.mark.parametrize("length", range(TAG_BYTES))
def test_a_message_shorter_than_its_tag_is_refused_by_its_length(length: int) -> None:
    with pytest.raises(Malformed, match="less than its tag"):
        Opener(KEY).feed(length.to_bytes(2, "big"))


def test_a_session_ends_before_a_number_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MAX_NONCE", 1)
    sealer = Sealer(KEY)
    sealer.seal([b"a", b"b"])
    with pytest.raises(Malformed, match="no number is left"):
        sealer.seal([b"c"])
