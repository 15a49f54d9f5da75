"""Runs on disk: checkpoints are named by their content, and what is damaged is passed over."""

import msgspec
import pytest

from agents.errors import CannotResume
from agents.training import runs
from agents.training.runs import Run, State
from agents.training.settings import Settings

RUN = Run(name="fox", model="tiny", base="b", trained_on="b", data="d", data_name="fox.txt", settings=Settings())


@pytest.fixture
def folder(tmp_path):
    place = runs.run_folder(tmp_path, "fox")
    runs.begin(place, RUN, b"the data")
    return place


def write(folder, step, weights=b"weights"):
    staging = folder / runs.CHECKPOINTS / ".writing"
    staging.mkdir()
    state = State(
        run=RUN, step=step, n_steps=9, n_examples=0, n_tokens=0, curve=[(1, 2.0)], evaluations=[], loss_before=1.0,
        environment={"cpu": "x", "threads": 1},
    )  # fmt: skip
    (staging / runs.STATE_FILE).write_bytes(msgspec.json.encode(state))
    (staging / runs.ADAPTER_FILE).write_bytes(weights)
    (staging / runs.OPTIMIZER_FILE).write_bytes(b"moments")
    return runs.keep_checkpoint(folder, staging, step)


def test_a_run_is_read_back_and_gone_when_it_is_over(folder):
    assert runs.read_run(folder) == RUN
    assert (folder / runs.DATA_FILE).read_bytes() == b"the data"
    runs.discard(folder)
    assert runs.read_run(folder) is None and not folder.exists()


def test_equal_checkpoints_have_one_name_and_only_the_last_two_stay(folder):
    kept = [write(folder, step) for step in (3, 6, 6, 9)]
    assert kept[1] == kept[2] and len({checkpoint.cid for checkpoint in kept}) == 3
    assert [checkpoint.step for checkpoint in runs.checkpoints(folder)] == [9, 6]
    assert runs.whole(folder) == (kept[3], [])
    assert runs.read_state(kept[3]).step == 9


@pytest.mark.parametrize("harm", ["changed", "missing", "more", "cut"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(folder, harm):
    before, last = write(folder, 3), write(folder, 6)
    weights = last.folder / runs.ADAPTER_FILE
    if harm == "changed":
        weights.write_bytes(b"Weights")
    elif harm == "missing":
        weights.unlink()
    elif harm == "more":
        (last.folder / "evil.pkl").write_bytes(b"")
    else:
        weights.write_bytes(b"weig")
    assert runs.whole(folder) == (before, ["the checkpoint of step 6 is damaged"])


def test_what_is_half_written_or_not_ours_is_no_checkpoint(folder):
    (folder / runs.CHECKPOINTS / ".writing").mkdir()
    (folder / runs.CHECKPOINTS / "00000003.nonsense").mkdir()
    (folder / runs.CHECKPOINTS / "notes").mkdir()
    assert runs.checkpoints(folder) == [] and runs.whole(folder) == (None, [])


def test_a_state_of_a_later_version_is_refused(folder):
    checkpoint = write(folder, 3)
    value = msgspec.json.decode((checkpoint.folder / runs.STATE_FILE).read_bytes()) | {"format": 2}
    (checkpoint.folder / runs.STATE_FILE).write_bytes(msgspec.json.encode(value))
    with pytest.raises(CannotResume, match="format"):
        runs.read_state(checkpoint)


def test_what_is_asked_otherwise_is_said():
    other = msgspec.structs.replace(RUN, data="e", settings=Settings(rank=16))
    assert runs.unlike(RUN, other) == ["the data is another", "rank was 8, is 16"]
    assert runs.unlike(RUN, RUN) == []
