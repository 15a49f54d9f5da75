"""Keys that are kept outlast a crash, and keys that are erased do not."""

import os
from pathlib import Path

import pytest

from storage.cid import Cid
from storage.keys import Identity
from storage.sealed import keyring as keyring_module
from storage.sealed.keyring import Keyring
from storage.sealed.keys import commitment, make_root
from storage.sealed.root import PREFIX_BYTES, Content, Root

KEY = bytes(range(32))


def sealed_root() -> Root:
    content = Content(Cid.of(KEY), len(KEY), bytes(PREFIX_BYTES), commitment(KEY))
    return make_root(content, KEY, [Identity(bytes(32)).peer_id], bytes)


def test_an_erased_key_is_overwritten_on_the_disk_before_its_name_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring, root = Keyring(tmp_path / "keys"), sealed_root()
    keyring.keep(root, KEY)
    (path,) = (tmp_path / "keys").iterdir()
    synced: list[bytes] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            synced.append(path.read_bytes())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    assert keyring.erase(root)
    assert synced == [bytes(32)]
    assert keyring.get(root) is None


def test_a_key_that_is_there_already_is_made_to_last_before_it_counts_as_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring, root = Keyring(tmp_path / "keys"), sealed_root()
    keyring.keep(root, KEY)  # as if this process had died before it synced the folder
    synced: list[Path] = []
    monkeypatch.setattr(keyring_module, "sync_folder", synced.append)
    keyring.keep(root, KEY)
    assert synced == [tmp_path / "keys"]
