"""What has broken others' federated rounds, and is watched by no other test here: see the table in FEDERATION.md."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from agents.federation.events.book import Book
from agents.federation.results.outcome import Submitted, admit, compute
from agents.federation.updates.tensors import Layout, new_vector
from protocols.entry import make_entry
from protocols.errors import Local, Malformed
from protocols.rounds import Join, Start, Submit, content_of, scope_of
from storage.cid import RAW, Cid
from tests.agents.federation.village import cid_of, identity, make_plan

LAYOUT = Layout.of({"bias": (4,), "weight": (2, 4)})


def judged(folder: Path, data: bytes) -> str:
    path = folder / "update"
    path.write_bytes(data)
    submit = Submit(round=1, base=cid_of("base"), update=Cid.of(data, RAW), n_samples=1)
    _, entry = make_plan(3)
    one = Submitted(identity(1).peer_id, submit, path, 0)
    return admit(Book(entry).plan, LAYOUT, [one])[0].reason


def tensors(bias: np.ndarray, dtype: str) -> bytes:  # type: ignore[type-arg]
    """A file of this layout, but for its bias."""
    weight = np.ones((2, 4), np.float32)
    at = bias.nbytes
    fields = {
        "bias": {"dtype": dtype, "shape": list(bias.shape), "data_offsets": [0, at]},
        "weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [at, at + weight.nbytes]},
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bias.tobytes() + weight.tobytes()


def test_the_file_that_these_tests_change_is_fine(tmp_path: Path) -> None:
    assert judged(tmp_path, tensors(np.ones(4, np.float32), "F32")) == ""


@pytest.mark.parametrize(
    ("bias", "dtype"),
    [
        (np.full(4, 6e4, np.float16), "F16"),
        (np.ones(4, np.uint16), "BF16"),
        (np.ones(4, np.float64), "F64"),
        (np.ones(4, np.int64), "I64"),
        (np.ones(4, np.uint8), "BOOL"),
    ],
    ids=["fp16 overflows", "bf16", "drift to float64", "integer buffer", "flags"],
)
def test_any_dtype_but_the_rounds_is_refused(tmp_path: Path, bias: np.ndarray, dtype: str) -> None:  # type: ignore[type-arg]
    said = judged(tmp_path, tensors(bias, dtype))
    assert dtype in said or "not in the one form" in said


@pytest.mark.parametrize("shape", [(1,), (4, 1), (1, 4), ()])
def test_a_shape_that_would_be_broadcast_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert "bias has shape" in judged(tmp_path, tensors(np.ones(shape, np.float32), "F32"))


def test_tied_tensors_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """As one mean each they would drift apart; as bytes of one file they would be counted twice, or once."""
    fields = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in ("bias", "weight")}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert judged(tmp_path, len(text).to_bytes(8, "little") + text + bytes(16)) not in ("", "it is zero everywhere")


@pytest.mark.parametrize("n_samples", [0, -85, math.nan, math.inf, 10.5, True, "10", 1 << 41])
def test_a_number_of_samples_that_cannot_be_is_no_submission(n_samples: object) -> None:
    _, plan = make_plan(3)
    content = content_of(Submit(round=1, base=cid_of("b"), update=cid_of("u"), n_samples=1)) | {"n_samples": n_samples}
    book = Book(plan)
    with pytest.raises((Malformed, Local)):
        book.add(make_entry(identity(1), Submit.kind, scope_of(book.experiment), 0, [], content))


def test_an_event_of_another_experiment_is_refused() -> None:
    """Replayed as it was signed: the scope is part of what the signature covers."""
    _, plan = make_plan(3)
    _, other = make_plan(3, title="another")
    entry = make_entry(identity(1), Join.kind, scope_of(other.body_cid), 0, [], content_of(Join()))
    Book(other).add(entry)
    with pytest.raises(Malformed, match="no event of this experiment"):
        Book(plan).add(entry)


def test_a_submission_for_another_round_counts_in_that_one_alone() -> None:
    book = started()
    say(book, 1, 0, Submit(round=2, base=cid_of("b"), update=cid_of("u"), n_samples=1))
    assert book.submissions(1) == {}


def test_of_two_submissions_of_one_peer_the_first_that_it_signed_counts() -> None:
    for order in ((0, 1), (1, 0)):
        book = started()
        for sequence in order:
            say(book, 1, sequence, Submit(round=1, base=cid_of("b"), update=cid_of(sequence), n_samples=1))
        (said,) = book.submissions(1).values()
        assert said.entry.sequence == 0


def test_an_event_that_is_heard_again_is_one() -> None:
    book = started()
    entry = say(book, 1, 0, Submit(round=1, base=cid_of("b"), update=cid_of("u"), n_samples=1))
    assert book.add(entry) is None
    assert len(book.all_of(Submit)) == 1


def test_weights_can_not_all_be_zero_so_no_mean_divides_by_it(tmp_path: Path) -> None:
    """A claim is at least one, and so is the cap: with one of each, the weighted mean is the update."""
    _, entry = make_plan(3, rule={"rule": "fedavg", "weights": "samples"}, max_samples=1)
    base = tmp_path / "base"
    new_vector(base, LAYOUT)[:] = 0.0
    data = tensors(np.ones(4, np.float32), "F32")
    (tmp_path / "update").write_bytes(data)
    submit = Submit(round=1, base=cid_of("b"), update=Cid.of(data, RAW), n_samples=1 << 40)
    (tmp_path / "out").mkdir()
    one = Submitted(identity(1).peer_id, submit, tmp_path / "update", 0)
    outcome = compute(Book(entry).plan, base, [one], tmp_path / "out", seed=b"")
    assert [update.weight for update in outcome.admitted] == [1.0] and not outcome.failed


def started() -> Book:
    _, plan = make_plan(3)
    book = Book(plan)
    say(book, 0, 0, Start(joined=tuple(identity(number).peer_id for number in range(3))))
    return book


def say(book: Book, number: int, sequence: int, event):  # type: ignore[no-untyped-def]
    entry = make_entry(identity(number), event.kind, scope_of(book.experiment), sequence, [], content_of(event))
    book.add(entry)
    return entry
