"""Identities: ids that others read, and a key file that is guarded."""

import os
from pathlib import Path

import pytest

from storage.keys import Identity, InvalidKey, InvalidPeerId, PeerId


def test_an_identity_signs_what_its_peer_id_verifies() -> None:
    identity = Identity(bytes(32))
    signature = identity.sign(b"data")
    assert identity.peer_id.verifies(signature, b"data")
    assert not identity.peer_id.verifies(signature, b"Data")
    assert not identity.peer_id.verifies(signature[:-1], b"data")
    assert not PeerId.of(b"\xff" * 32).verifies(signature, b"data")


def test_a_peer_id_comes_back_from_its_text() -> None:
    peer = Identity(bytes(32)).peer_id
    assert str(peer).startswith("12D3KooW")
    assert PeerId.parse(str(peer)) == peer
    assert PeerId.of(peer.public_key) == peer


@pytest.mark.parametrize(
    "text",
    ["", "12D3KooW", "0" * 52, "1" * 52, "Qm" + "a" * 50, "1" * 1000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5"],
)
def test_text_that_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidPeerId):
        PeerId.parse(text)


def test_bytes_that_are_no_peer_id_are_refused() -> None:
    peer = Identity(bytes(32)).peer_id
    inlined = (b"\x00\x00", b"\x00\x2b\x08" + bytes(42), b"\x00\x05\x08\x01\x12\x01x", b"\x00\x03\x09ab")
    hashed = (b"\x12\x20" + bytes(31), b"\x12\x20" + bytes(33), b"\x13\x20" + bytes(32))
    for raw in (b"", peer[:-1], bytes(peer) + b"\0", b"\x00" * len(peer), *inlined, *hashed):
        with pytest.raises(InvalidPeerId):
            PeerId(raw)


@pytest.mark.parametrize(
    "text",
    [
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # RSA
        "16Uiu2HAmUheLN37N8UNq9uczECH9ZNFTGMxX1DVNZ3tSZZKpf8ZE",  # secp256k1
    ],
)
def test_strangers_have_keys_of_other_types_that_verify_nothing(text: str) -> None:
    peer = PeerId.parse(text)
    assert str(peer) == text
    assert PeerId(bytes(peer)) == peer
    assert not peer.verifies(bytes(64), b"data")
    with pytest.raises(InvalidPeerId, match="not the id of an Ed25519 key"):
        _ = peer.public_key


def test_a_key_is_saved_once_for_its_owner_alone(tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "key").peer_id == identity.peer_id
    with pytest.raises(FileExistsError):
        Identity.generate().save(tmp_path / "key")


def test_a_key_that_others_may_read_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Identity.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(InvalidKey, match="chmod 600"):
        Identity.load(path)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidKey, match="31 bytes"):
        Identity.load(path)


def test_a_kill_while_a_key_is_saved_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def dying(*_args: object) -> int:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", dying)
        patched.setattr(os, "write", dying)
        with pytest.raises(Killed):
            Identity.generate().save(tmp_path / "key")
    identity = Identity.generate()
    identity.save(tmp_path / "key")
    assert Identity.load(tmp_path / "key").peer_id == identity.peer_id
