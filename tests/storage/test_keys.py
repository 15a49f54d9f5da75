"""Identities: ids that others read, and a key file that is guarded."""

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


@pytest.mark.parametrize("text", ["", "12D3KooW", "0" * 52, "1" * 52, "Qm" + "a" * 50])
def test_text_that_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidPeerId):
        PeerId.parse(text)


def test_bytes_that_are_no_peer_id_are_refused() -> None:
    peer = Identity(bytes(32)).peer_id
    for raw in (b"", peer[:-1], bytes(peer) + b"\0", b"\x00" * len(peer)):
        with pytest.raises(InvalidPeerId):
            PeerId(raw)


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
