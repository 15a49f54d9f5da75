import os
from pathlib import Path

import pytest

from agents.engine.worker.folders import publish, replace, restore


def staged(tmp_path: Path, text: str) -> Path:
    staging = tmp_path / ".fox.training"
    staging.mkdir()
    (staging / "weights").write_text(text)
    return staging


def test_a_finished_folder_takes_its_place_and_the_earlier_one_goes(tmp_path):
    folder = tmp_path / "fox"
    for text in ("one", "two"):
        replace(staged(tmp_path, text), folder)
        assert (folder / "weights").read_text() == text
        assert os.listdir(tmp_path) == ["fox"]


def test_a_folder_that_cannot_take_its_place_leaves_the_earlier_one_there(tmp_path, monkeypatch):
    folder = tmp_path / "fox"
    publish(staged(tmp_path, "one"), folder)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == ".fox.training":
            raise OSError("no")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        replace(staged(tmp_path, "two"), folder)
    assert (folder / "weights").read_text() == "one"


@pytest.mark.parametrize("at", range(1, 9))
def test_a_process_that_is_killed_at_any_step_leaves_one_of_the_two(tmp_path, monkeypatch, at):
    folder, staging = tmp_path / "fox", tmp_path / ".fox.training"
    publish(staged(tmp_path, "one"), folder)
    staged(tmp_path, "two")
    left = [at]

    def dying(function):
        def call(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return function(*args, **options)

        return call

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "fsync", dying(os.fsync))
        monkeypatch.setattr(Path, "rename", dying(Path.rename))
        monkeypatch.setattr(os, "rmdir", dying(os.rmdir))
        replace(staging, folder)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (9 if at <= 6 else 0)
    if at <= 3 or at >= 5:  # only between the two renames is there nothing by the name
        assert (folder / "weights").exists()
    restore(folder)
    assert (folder / "weights").read_text() == ("one" if at <= 4 else "two")
