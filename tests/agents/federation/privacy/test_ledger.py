from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.privacy import ledger as ledgers
from agents.federation.privacy import pld, rdp
from agents.federation.privacy.ledger import PLD_BITS, RDP_BITS, BadLedger, Budget, BudgetSpent, Ledger, rounded_up
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


def test_a_ledger_that_the_disk_does_not_give_is_refused_and_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "budget.json").mkdir()
    with pytest.raises(BadLedger, match="cannot be read"):
        open_ledger(tmp_path)


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


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("part", [1.0 - 1e-13, 1.0 + 1e-13])
def test_a_cost_that_differs_in_its_last_bits_is_the_same_on_all_machines(
    monkeypatch: pytest.MonkeyPatch, accountant: Literal["rdp", "pld"], part: float
) -> None:
    """A budget that is just what one machine makes of the rounds is borne by all."""
    told = [Spent(4.0, times=5)]
    cost = Budget(3.0, 1e-5, accountant).cost(told)
    bare = {"rdp": rdp, "pld": pld}[accountant].epsilon
    assert bare(told, 1e-5) <= cost <= bare(told, 1e-5) * (1.0 + 1e-5)
    monkeypatch.setattr(rdp if accountant == "rdp" else pld, "epsilon", lambda *spent: bare(*spent) * part)
    assert Budget(3.0, 1e-5, accountant).cost(told) == cost
    assert Budget(cost, 1e-5, accountant).is_within(told)
    assert not Budget(cost * (1.0 - 1e-9), 1e-5, accountant).is_within(told)


@given(st.floats(0.0, 1e6), st.sampled_from([PLD_BITS, RDP_BITS]))
def test_what_is_rounded_up_is_little_more_and_stays_what_it_is(value: float, n_bits: int) -> None:
    found = rounded_up(value, n_bits)
    assert value <= found <= value * (1.0 + 2.0 ** (1 - n_bits)) + 5e-324
    assert rounded_up(found, n_bits) == found


def test_what_the_tighter_accountant_cannot_count_is_borne_where_renyis_orders_say_so() -> None:
    told = [Spent(1.0, times=2000)]
    assert Budget(1e6, 1e-5, "pld").cost(told) == Budget(1e6, 1e-5, "rdp").cost(told)
    assert Budget(1e6, 1e-5, "pld").is_within(told) and not Budget(1e2, 1e-5, "pld").is_within(told)


def test_a_ledger_that_is_full_charges_no_more_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "MAX_LEDGER_BYTES", 1000)
    ledger, number = open_ledger(tmp_path, 1e6), 1
    n_bytes = 0
    while n_bytes + (n_bytes // max(number - 1, 1)) < 1000:
        ledger.charge(number, result(number), [Spent(1e3)])
        n_bytes, number = (tmp_path / "budget.json").stat().st_size, number + 1
    with pytest.raises(BudgetSpent, match="no more fit in it"):
        ledger.charge(number, result(number), [Spent(1e3)])
    assert number > 3
    assert open_ledger(tmp_path, 1e6).charges == ledger.charges and len(ledger.charges) == number - 1
