"""Small files are replaced whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from storage import durable
from storage.durable import create_file, make_folder, write_file
from storage.errors import StoreFull


def test_a_file_is_written_and_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def no_room(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "pwrite", no_room)
    with pytest.raises(StoreFull):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("fsync", "rename"):
        actual = getattr(os, name)
        monkeypatch.setattr(
            durable.os, name, lambda *args, actual=actual, name=name: (steps.append(name), actual(*args))[1]
        )
    write_file(tmp_path / "file", b"x")
    assert steps == ["fsync", "rename", "fsync"]


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(durable.os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    write_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_file_is_created_whole_or_not_at_all_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(*_args: object) -> int:
        raise Killed

    path = tmp_path / "file"
    for step in ("pwrite", "fsync", "link"):
        with monkeypatch.context() as patched:
            patched.setattr(durable.os, step, dying)
            with pytest.raises(Killed):
                create_file(path, b"secret")
        assert not path.exists()
    create_file(path, b"secret")
    with pytest.raises(FileExistsError):
        create_file(path, b"other")
    assert path.read_bytes() == b"secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_gets_its_mode_and_those_above_it_the_usual_one(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        make_folder(tmp_path / "above" / "keys", 0o700)
        make_folder(tmp_path / "above" / "keys", 0o777)  # it is there: it stays as it is
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "above", tmp_path / "above" / "keys")] == [
        0o755,
        0o700,
    ]
