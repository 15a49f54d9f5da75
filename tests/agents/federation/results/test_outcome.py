"""A closed set has one result, whoever computes it; what is not fit to be averaged is refused, with a reason."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agents.federation.results.outcome import Outcome, Submitted, admit, compute, document, read_document
from agents.federation.updates.tensors import BadTensors, Layout, flush, new_vector, read_layout, read_vector
from protocols.rounds import Plan, Submit, read_plan
from storage.cid import RAW, Cid
from storage.keys import PeerId
from tests.agents.federation.village import identity, make_plan

LAYOUT = Layout.of({"lora_B": (3, 4), "lora_A": (4, 5)})
N = 7


def plan(**changes: object) -> Plan:
    return read_plan(make_plan(N, **changes)[1])


def write(path: Path, values: object, layout: Layout = LAYOUT) -> Path:
    vector = new_vector(path, layout)
    vector[:] = np.asarray(values, np.float32)
    flush(vector, path)
    return path


def peer(number: int) -> PeerId:
    return identity(number).peer_id


def cid_of(path: Path) -> Cid:
    return Cid.of(path.read_bytes(), RAW)


def submitted(folder: Path, number: int, values: object, n_samples: int = 10, layout: Layout = LAYOUT) -> Submitted:
    path = write(folder / f"update-{number}-{len(list(folder.iterdir()))}", values, layout)
    submit = Submit(round=1, base=Cid.of(b"base", RAW), update=cid_of(path), n_samples=n_samples)
    return Submitted(peer(number), submit, path, 0)


def values(number: int) -> np.ndarray:  # type: ignore[type-arg]
    raw = hashlib.shake_128(b"update %d" % number).digest(2 * LAYOUT.n_params)
    return np.frombuffer(raw, "<i2").astype(np.float32) * np.float32(2.0**-20)


def base(folder: Path) -> Path:
    return write(folder / "base", np.arange(LAYOUT.n_params))


def run(folder: Path, ones: list[Submitted], the_plan: Plan | None = None, name: str = "out") -> Outcome:
    (folder / name).mkdir()
    return compute(the_plan or plan(), folder / "base", ones, folder / name, seed=b"seed")


def digest(outcome: Outcome) -> Cid:
    states = [cid_of(path) for path in outcome.states]
    return document(Cid.of(b"plan", RAW), 1, Cid.of(b"base", RAW), outcome, cid_of(outcome.tensors), states)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rule": {"rule": "trimmed_mean", "n_bad": 2}, "before": ({"before": "nnm", "n_bad": 2},)},
        {"rule": {"rule": "fedavg"}, "server": {"server": "fedadam"}},
    ],
)
def test_one_closed_set_has_one_document_in_every_order(tmp_path: Path, changes: dict[str, object]) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, values(number), n_samples=number + 1) for number in range(N)]
    expected = digest(run(tmp_path, ones, plan(**changes)))
    for turn in range(20):
        random.Random(turn).shuffle(ones)
        assert digest(run(tmp_path, ones, plan(**changes), f"turn-{turn}")) == expected


def test_the_result_is_the_base_and_the_common_change(tmp_path: Path) -> None:
    base(tmp_path)
    outcome = run(tmp_path, [submitted(tmp_path, number, values(number)) for number in range(3)])
    mean = np.mean([values(number) for number in range(3)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(read_vector(outcome.tensors, LAYOUT), np.arange(LAYOUT.n_params) + mean, rtol=1e-6)


def refusals(folder: Path, bad: Submitted, the_plan: Plan | None = None) -> dict[PeerId, str]:
    """Why each of two good updates and a bad one was refused; the result is that of the good ones."""
    base(folder)
    good = [submitted(folder, number, values(number)) for number in range(2)]
    outcome = run(folder, [bad, *good], the_plan)
    clean = run(folder, good, the_plan, "clean")
    np.testing.assert_array_equal(read_vector(outcome.tensors, LAYOUT), read_vector(clean.tensors, LAYOUT))
    return {verdict.peer: verdict.reason for verdict in outcome.verdicts if verdict.reason}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 11, 31])
def test_what_is_not_finite_is_refused(tmp_path: Path, bad: float, place: int) -> None:
    broken = values(5).copy()
    broken[place] = bad
    assert refusals(tmp_path, submitted(tmp_path, 5, broken)) == {peer(5): "it holds NaN or infinity"}


def test_an_update_of_zeros_is_refused(tmp_path: Path) -> None:
    assert refusals(tmp_path, submitted(tmp_path, 5, 0.0)) == {peer(5): "it is zero everywhere"}


def test_an_update_over_the_norm_bound_is_refused(tmp_path: Path) -> None:
    found = refusals(tmp_path, submitted(tmp_path, 5, values(5) * 1000), plan(max_norm=10.0))
    assert list(found) == [peer(5)] and found[peer(5)].endswith("is over the bound of 10")


def test_a_norm_bound_holds_to_the_last_percent(tmp_path: Path) -> None:
    one = submitted(tmp_path, 5, values(5))
    norm = float(np.linalg.norm(values(5)))
    reasons = [admit(plan(max_norm=part * norm), LAYOUT, [one])[0].reason for part in (0.99, 1.01)]
    assert "over the bound" in reasons[0] and reasons[1] == ""


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"lora_A": (4, 5)}, "lora_B is missing"),
        ({"lora_A": (4, 5), "lora_B": (3, 4), "more": (1,)}, "more is not part of the base"),
        ({"lora_A": (5, 4), "lora_B": (3, 4)}, "lora_A has shape (5, 4), in the base (4, 5)"),
        ({"lora_A": (4, 5), "lora_B": (1, 4)}, "lora_B has shape (1, 4), in the base (3, 4)"),
        ({"lora_A": (3, 4), "lora_B": (4, 5)}, "lora_A has shape (3, 4), in the base (4, 5)"),
    ],
    ids=["missing", "extra", "transposed", "broadcast", "swapped"],
)
def test_tensors_of_another_layout_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    bad = submitted(tmp_path, 5, 1.0, layout=Layout.of(shapes))
    assert refusals(tmp_path, bad) == {peer(5): reason}


def test_an_update_from_another_base_is_refused(tmp_path: Path) -> None:
    for staleness in (None, 1):
        folder = tmp_path / str(staleness)
        folder.mkdir()
        bad = submitted(folder, 5, values(5))._replace(staleness=staleness)
        assert refusals(folder, bad) == {peer(5): "its base is not the round's"}


def test_a_rule_that_declares_staleness_takes_an_older_base(tmp_path: Path) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, values(number))._replace(staleness=number) for number in range(4)]
    outcome = run(tmp_path, ones, plan(rule={"rule": "fedbuff", "max_staleness": 2}))
    assert {one.peer for one in outcome.verdicts if one.reason} == {peer(3)}
    factors = [1 / np.sqrt(1 + age) / 3 for age in range(3)]
    change = sum(factor * values(age) for age, factor in enumerate(factors))
    np.testing.assert_allclose(read_vector(outcome.tensors, LAYOUT), np.arange(LAYOUT.n_params) + change, rtol=1e-6)


def test_the_same_tensors_count_once(tmp_path: Path) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, values(0)) for number in (4, 5, 6)]
    outcome = run(tmp_path, ones)
    first = min(peer(number) for number in (4, 5, 6))
    assert [one.peer for one in outcome.admitted] == [str(first)]
    assert {one.reason for one in outcome.verdicts} == {"", f"it is the same as that of {first}"}


def test_who_copies_an_update_takes_neither_it_nor_its_weight_from_its_author(tmp_path: Path) -> None:
    base(tmp_path)
    first, author = sorted((peer(5), peer(6)))
    honest = submitted(tmp_path, 0, values(5), n_samples=500)._replace(peer=author)
    others = [submitted(tmp_path, number, values(number)) for number in range(3)]
    light = honest._replace(peer=first, submit=replace(honest.submit, n_samples=1))
    for at, copy in enumerate([light, light._replace(staleness=None)]):
        outcome = run(tmp_path, [*others, honest, copy], name=f"out-{at}")
        assert {one.peer: one.weight for one in outcome.admitted}[str(author)] == 500.0
        assert [one.peer for one in outcome.verdicts if one.reason] == [first]


def test_who_copies_the_trusted_update_takes_not_the_measure_from_its_author(tmp_path: Path) -> None:
    base(tmp_path)
    others = [submitted(tmp_path, number, values(number)) for number in range(3)]
    copy = others[0]._replace(peer=peer(6), submit=replace(others[0].submit, n_samples=500))
    outcome = run(tmp_path, [*others, copy], plan(rule={"rule": "fltrust", "trusted": str(peer(0))}))
    assert [one.peer for one in outcome.verdicts if one.reason] == [peer(6)] and not outcome.failed


@pytest.mark.parametrize("rule", ["geometric_median", "centred_clipping", "norm_bound", "trimmed_mean"])
def test_mixing_bears_as_many_that_would_overflow_as_it_says(tmp_path: Path, rule: str) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, values(number)) for number in range(5)]
    bad = [submitted(tmp_path, number, np.full(LAYOUT.n_params, 3.4e38 - number * 1e36)) for number in (5, 6)]
    settings = {"rule": rule} | ({"n_bad": 2} if rule == "trimmed_mean" else {})
    outcome = run(tmp_path, ones + bad, plan(rule=settings, before=({"before": "nnm", "n_bad": 2},)))
    assert not outcome.failed and cid_of(outcome.tensors) != cid_of(tmp_path / "base")
    assert {one.peer for one in outcome.verdicts if "overflows" in one.reason} == {peer(5), peer(6)}


def test_a_claim_of_samples_counts_up_to_the_cap(tmp_path: Path) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, 0, 5.0, n_samples=10**6), submitted(tmp_path, 1, values(1), n_samples=10)]
    outcome = run(tmp_path, ones, plan(max_samples=20, rule={"rule": "fedavg", "weights": "samples"}))
    assert sorted(one.weight for one in outcome.admitted) == [10.0, 20.0]


def test_when_the_rule_can_make_nothing_of_what_is_admitted_the_tensors_stay(tmp_path: Path) -> None:
    base(tmp_path)
    outcome = run(tmp_path, [submitted(tmp_path, 0, values(0))], plan(rule={"rule": "krum", "n_bad": 1}))
    assert outcome.failed == "Krum bears 1 bad updates among 5 or more, and there are 1"
    assert cid_of(outcome.tensors) == cid_of(tmp_path / "base")


def test_a_result_that_overflows_leaves_the_tensors_what_they_were(tmp_path: Path) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, np.full(LAYOUT.n_params, 3e38) - number * 1e36) for number in range(3)]
    outcome = run(tmp_path, ones)
    assert outcome.failed == "the result would hold NaN or infinity"
    assert cid_of(outcome.tensors) == cid_of(tmp_path / "base")


def test_server_states_go_on_from_round_to_round(tmp_path: Path) -> None:
    base(tmp_path)
    ones = [submitted(tmp_path, number, values(number)) for number in range(3)]
    momentum = plan(rule={"rule": "fedavg"}, server={"server": "fedavgm", "beta": 0.5})
    first = run(tmp_path, ones, momentum, "first")
    (tmp_path / "second").mkdir()
    second = compute(momentum, first.tensors, ones, tmp_path / "second", seed=b"", states=first.states)
    mean = np.mean([values(number) for number in range(3)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(read_vector(second.states[0], LAYOUT), 1.5 * mean, rtol=1e-5, atol=1e-8)


def test_a_document_says_what_it_covers(tmp_path: Path) -> None:
    base(tmp_path)
    outcome = run(tmp_path, [submitted(tmp_path, number, values(number)) for number in range(3)])
    cid, data = document(Cid.of(b"plan", RAW), 1, Cid.of(b"base", RAW), outcome, cid_of(outcome.tensors), [])
    found = read_document(data)
    assert (found.base, found.tensors, found.states) == (Cid.of(b"base", RAW), cid_of(outcome.tensors), ())
    assert list(found.updates) == sorted(found.updates) and len(found.updates) == 3
    assert cid != document(Cid.of(b"another plan", RAW), 1, found.base, outcome, found.tensors, [])[0]


# The files


@pytest.mark.parametrize("data", [b"", b"no DAG-CBOR", b"\x80", b"\xa0", b"\x00"])
def test_what_is_no_document_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(BadTensors, match="not the document"):
        read_document(data)


def test_one_set_of_tensors_has_one_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", np.arange(LAYOUT.n_params))
    assert read_layout(path) == LAYOUT
    np.testing.assert_array_equal(read_vector(path, LAYOUT), np.arange(LAYOUT.n_params, dtype=np.float32))
    assert Layout.of({"lora_A": (4, 5), "lora_B": (3, 4)}).header() == LAYOUT.header()
    assert len(LAYOUT.header()) % 8 == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:-1], "one form"),
        (lambda data: data + b"\0", "one form"),
        (lambda data: data[:5], "cut short"),
        (lambda data: data.replace(b'"F32"', b'"F16"', 1), "one form"),
        (lambda data: data.replace(b'{"lora_A"', b'{ "lora_A"', 1).replace(b"}} ", b"}}", 1), "one form"),
        (lambda data: b"\xff" * 8 + data[8:], "the limit is"),
        (lambda data: data[:8] + b"[" + data[9:], "one form"),
        (lambda data: data.replace(b'"lora_A"', rb'"\ud800"', 1), "one form"),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path: Path, change, what: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "a", 1.0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadTensors, match=what):
        read_layout(path)


def test_why_a_file_is_refused_does_not_hang_on_who_reads_it(tmp_path: Path) -> None:
    """Members sign the reason, and who verifies finds the same: else an honest one would be refuted by name."""
    header = b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"
    header += b" " * (-len(header) % 8)
    (tmp_path / "deep").write_bytes(len(header).to_bytes(8, "little") + header)

    def reason(n_frames: int) -> str:
        if n_frames:
            return reason(n_frames - 1)
        with pytest.raises(BadTensors) as refused:
            read_layout(tmp_path / "deep")
        return str(refused.value)

    assert reason(0) == reason(400)
