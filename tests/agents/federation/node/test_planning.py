"""A plan that would not hold is refused with the reason before anybody signs it."""

from pathlib import Path
from typing import Any

import pytest

from agents.federation.node.planning import BadPlan, brief, complete, lean, plan_of, read_file
from protocols.rounds import Plan
from storage.keys import PeerId
from tests.agents.federation.village import cid_of, identity

PEERS = tuple(identity(number).peer_id for number in range(6))
TASK = {"task": "softmax", "n_features": 4, "n_classes": 3}
EXAMPLES = {"noise": "examples", "bound": 1.0, "multiplier": 1.0, "budget": {"epsilon": 8.0, "delta": 1e-5}}
STRANGER = identity(9).peer_id


def plan(**changes: Any) -> Plan:
    fields = {"title": "test", "task": TASK, "members": PEERS, "deputies": PEERS[:2], "min_participants": 4}
    return plan_of(fields | changes, cid_of("initial"), 1)


def test_a_plan_that_holds_is_made_and_whole_seconds_will_do() -> None:
    made = plan(deadline_s=60, lease_s=5, max_norm=3)
    assert (made.deadline_s, made.lease_s, made.max_norm) == (60.0, 5.0, 3.0)
    assert made.initial == cid_of("initial") and made.created_unix_s == 1 and made.is_evaluated


def test_a_plan_holds_that_some_number_of_updates_is_enough_for() -> None:
    trusted = {"rule": "fltrust", "trusted": str(PEERS[5])}
    selected = {"n_selected": 4, "min_participants": 3}
    assert plan(rule=trusted, **selected).rule == trusted
    for rule in ({"rule": "trimmed_mean", "n_bad": 1}, {"rule": "median"}):
        assert plan(rule=rule, before=({"before": "nnm", "n_bad": 1},), **selected).rule == rule


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_selected": 4, "min_participants": 2}, "needs a minimum of 3 to 4 participants, not 2"),
        ({"n_selected": 5, "min_participants": 2}, "needs a minimum of 3 to 5 participants, not 2"),
        ({"n_selected": 4, "min_participants": 5}, "needs a minimum of 3 to 4 participants, not 5"),
        ({"min_participants": 7}, "7 participants are needed, and there are 6 members"),
        ({"deputies": (PEERS[0], STRANGER)}, "every deputy is a member"),
        ({"deputies": (PEERS[0], PEERS[0])}, "named once"),
        ({"deadline_s": 4, "lease_s": 5}, "the deadline is shorter than the lease"),
        ({"deputies": ()}, "not a plan"),
        ({"title": ""}, "not a plan: it has no title"),
        ({"n_rounds": 0}, "at `rounds`"),
        ({"needs": {"n_samples": -1}}, "at `needs.n_samples`"),
        ({"n_rounds": 0}, "not a plan"),
        ({"n_rounds": 1 << 16}, "make it fewer rounds"),
        ({"lease_s": 0}, "not a plan"),
        ({"max_norm": -1.0}, "not a plan"),
        ({"max_norm": -0.0}, "cannot be signed: .*negative zero"),
        ({"max_norm": float("inf")}, "cannot be signed: .*Infinities"),
        ({"rule": {"rule": "norm_bound", "bound": float("inf")}}, "cannot be signed: .*Infinities"),
        ({"members": ()}, "not a plan"),
        ({"nonsense": 1}, "keyword argument .nonsense"),
        (
            {"privacy": EXAMPLES, "is_evaluated": False, "task": {"task": "given"}},
            "given adds no noise to its examples",
        ),
        (
            {"rule": {"rule": "trimmed_mean", "n_bad": 3}},
            "has 6 updates at most: a trimmed mean bears 3 bad updates among 7",
        ),
        ({"before": ({"before": "nnm", "n_bad": 3},)}, "nearest-neighbour mixing bears 3 bad updates among 7"),
        (
            {"before": ({"before": "bucketing", "size": 2},), "rule": {"rule": "trimmed_mean", "n_bad": 2}},
            "among 5 or more, and there are 3",
        ),
        (
            {"rule": {"rule": "trimmed_mean", "n_bad": 2}, "n_selected": 4, "min_participants": 3},
            "has 4 updates at most",
        ),
        ({"rule": {"rule": "fltrust", "trusted": "ada"}}, "the trusted peer ada is missing"),
        ({"compression": {"codec": "none"}}, "there is no codec 'none'"),
        ({"compression": {"codec": "top_k", "part": 0.9}}, "compression"),
    ],
)
def test_a_plan_that_would_not_hold_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadPlan, match=says):
        plan(**changes)


def test_a_minimum_that_the_rule_does_not_bear_is_told_with_the_number_that_it_does() -> None:
    trimmed = {"rule": {"rule": "trimmed_mean", "n_bad": 2}}
    (said,) = lean(plan(**trimmed))
    assert said.startswith("a round of 4 updates, the minimum") and "With 5 its rule can do" in said
    assert lean(plan(min_participants=1)) == []
    assert lean(plan(rule={"rule": "fltrust", "trusted": str(PEERS[5])})) == []


def test_that_refused_updates_may_leave_a_rule_too_few_is_told() -> None:
    one_bad = {"rule": {"rule": "trimmed_mean", "n_bad": 1}}
    (said,) = lean(plan(**one_bad, min_participants=3))
    assert said.startswith("a round of 3 updates, the minimum, of which 1 may be refused, leaves")
    assert "With 4 its rule can do" in said
    assert lean(plan(**one_bad, min_participants=4)) == []
    (said,) = lean(plan(rule={"rule": "trimmed_mean", "n_bad": 2}, min_participants=5))
    assert "of which 2 may be refused" in said and "With" not in said  # seven that there are not


@pytest.mark.parametrize(("n_selected", "minimum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_over_half_of_a_selection_is_enough_and_half_is_not(n_selected: int, minimum: int) -> None:
    assert plan(n_selected=n_selected, min_participants=minimum).n_selected == n_selected
    if minimum > 1:
        with pytest.raises(BadPlan, match="over half of them"):
            plan(n_selected=n_selected, min_participants=minimum - 1)


@pytest.mark.parametrize("minimum", [1, 2, 3])
def test_without_a_selection_fewer_than_half_of_the_members_will_do_since_the_quorum_follows_those_who_joined(
    minimum: int,
) -> None:
    assert plan(min_participants=minimum).min_participants == minimum


def test_a_deadline_of_one_lease_is_long_enough() -> None:
    assert plan(deadline_s=5, lease_s=5).deadline_s == 5.0


def resolve(name: str) -> PeerId:
    return {"ada": PEERS[0], "bob": PEERS[1], "cleo": PEERS[2]}[name]


def test_names_become_peers_and_without_deputies_the_author_coordinates_before_the_others() -> None:
    made = complete({"task": "softmax", "rounds": 3, "members": ["bob", "cleo"], "selected": 2}, resolve, PEERS[0])
    assert made["members"] == tuple(sorted(PEERS[:3])) and made["deputies"] == PEERS[:3]
    assert (made["n_rounds"], made["n_selected"], made["task"]) == (3, 2, {"task": "softmax"})
    made = complete({"task": TASK, "members": ["ada", "bob"], "deputies": ["bob", "me"]}, resolve, PEERS[2])
    assert made["deputies"] == (PEERS[1], PEERS[2])


def test_what_can_be_a_name_or_a_table_is_a_table_in_the_end() -> None:
    wish = {"task": "softmax", "rule": "median", "server": "fedadam", "compression": "int8", "before": ["nnm"]}
    made = complete(wish | {"gossip": "moshpit"}, resolve, PEERS[0])
    assert made["gossip"] == {"mixing": "moshpit"}
    assert made["compression"] == {"codec": "int8"} and made["rule"] == {"rule": "median"}
    assert made["server"] == {"server": "fedadam"} and made["before"] == ({"before": "nnm"},)


def test_with_privacy_nobody_tells_how_results_do_on_its_data_unless_the_plan_says_so() -> None:
    private = {"task": "softmax", "privacy": {"noise": "central"}}
    assert complete(private, resolve, PEERS[0])["is_evaluated"] is False
    assert complete(private | {"evaluated": True}, resolve, PEERS[0])["is_evaluated"] is True
    assert "is_evaluated" not in complete({"task": "softmax"}, resolve, PEERS[0])


def test_a_plan_names_what_is_trained() -> None:
    with pytest.raises(BadPlan, match="names what is trained"):
        complete({"title": "test"}, resolve, PEERS[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "is no TOML"),
        ('tittle = "x"', "there is no 'tittle' in a plan"),
        ("members = 5", "members is a list of peers"),
        ("deputies = [1]", "deputies is a list of peers"),
        ("task = 5", "task is a name, or a table"),
        ("compression = 5", "compression is a name, or a table"),
        ('before = "nnm"', "before is a list"),
        ("initial = 5", "initial a file or a CID"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_the_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(BadPlan, match=says):
        read_file(tmp_path / "plan.toml")


def test_a_file_of_more_than_a_mebibyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BadPlan, match="over 1048576 bytes"):
        read_file(tmp_path / "plan.toml")


def test_a_budget_that_ends_a_plan_before_its_rounds_do_is_told_with_how_many_it_bears() -> None:
    noise = {"noise": "central", "bound": 1.0, "multiplier": 1.0, "budget": {"epsilon": 8.0, "delta": 1e-5}}
    (said,) = brief(plan(is_evaluated=False, privacy=noise, n_rounds=9))
    assert said.startswith("its privacy budget bears 2 of 9 rounds, where 6 take part in each")
    assert brief(plan(is_evaluated=False, privacy=noise, n_rounds=2)) == brief(plan(n_rounds=9)) == []
    assert (
        len(brief(plan(privacy=noise | {"budget": {"epsilon": 0.1, "delta": 1e-5}}, is_evaluated=False, n_rounds=1)))
        == 1
    )
