from pathlib import Path

import pytest

from agents.federation.privacy.ledger import BadLedger, Budget, BudgetSpent, Ledger
from agents.federation.privacy.spent import Spent
from storage.cid import RAW, Cid

PLAN = Cid.of(b"plan", RAW)


def result(number: int) -> Cid:
    return Cid.of(b"result %d" % number, RAW)


def open_ledger(folder: Path, epsilon: float = 3.0, plan: Cid = PLAN) -> Ledger:
    return Ledger(folder / "budget.json", plan, Budget(epsilon, 1e-5))


def test_a_charge_is_on_the_disk_before_it_is_answered(tmp_path: Path) -> None:
    told = open_ledger(tmp_path).charge(1, result(1), [Spent(4.0)])
    again = open_ledger(tmp_path)
    assert again.epsilon == told > 0.0
    assert [charge.round for charge in again.charges] == [1]


def test_a_spent_budget_ends_the_experiment_and_charges_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    number = 1
    while ledger.bears([Spent(4.0)]):
        ledger.charge(number, result(number), [Spent(4.0)])
        number += 1
    assert 1 < number < 100
    with pytest.raises(BudgetSpent, match="not published"):
        ledger.charge(number, result(number), [Spent(4.0)])
    assert ledger.epsilon <= 3.0 and len(ledger.charges) == number - 1
    with pytest.raises(BudgetSpent):
        open_ledger(tmp_path).charge(number, result(number), [Spent(4.0)])


def test_the_same_result_costs_once_and_another_of_the_same_round_again(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    once = ledger.charge(1, result(1), [Spent(4.0)])
    assert ledger.charge(1, result(1), [Spent(4.0)]) == once
    assert ledger.charge(1, result(2), [Spent(4.0)]) > once
    with pytest.raises(BadLedger, match="other noise"):
        ledger.charge(1, result(1), [Spent(40.0)])


def test_a_result_without_noise_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(BudgetSpent):
        open_ledger(tmp_path, 1e6).charge(1, result(1), [Spent(0.0)])


def test_both_accountants_keep_a_ledger_and_the_tighter_one_bears_more(tmp_path: Path) -> None:
    costs = [Budget(3.0, 1e-5, name).cost([Spent(4.0, times=5)]) for name in ("rdp", "pld")]  # type: ignore[arg-type]
    assert costs[1] < costs[0]
    assert Budget(3.0, 1e-5, "pld").cost([Spent(1e-4)]) == float("inf")


def test_a_ledger_of_another_experiment_or_budget_is_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path).charge(1, result(1), [Spent(4.0)])
    with pytest.raises(BadLedger, match="another"):
        open_ledger(tmp_path, plan=result(9))
    with pytest.raises(BadLedger, match="another"):
        open_ledger(tmp_path, epsilon=30.0)


def test_a_damaged_ledger_is_refused_whatever_was_cut_or_changed(tmp_path: Path) -> None:
    open_ledger(tmp_path).charge(1, result(1), [Spent(4.0)])
    path = tmp_path / "budget.json"
    data = path.read_bytes()
    bad = [data[:length] for length in range(len(data))]
    bad += [data + b"x", data.replace(b'"round":1', b'"round":0'), data.replace(str(result(1)).encode(), b"bafy")]
    for changed in bad:
        path.write_bytes(changed)
        with pytest.raises(BadLedger):
            open_ledger(tmp_path)
