import pytest

from agents.federation.plans.compatibility import OPTIONS, TABLE, UNDECIDABLE, check, limits, problems, undecidable
from agents.federation.plans.options import BadOption
from protocols.rounds import Plan
from tests.agents.federation.village import cid_of, identity

BUDGET = {"epsilon": 8.0, "delta": 1e-5}
CENTRAL = {"noise": "central", "bound": 1.0, "multiplier": 1.0, "budget": BUDGET}
EXAMPLES = CENTRAL | {"noise": "examples"}
DISTRIBUTED = CENTRAL | {"noise": "distributed"}
SECURE = {"secure": {}, "max_norm": 1.0}
TRIMMED = {"rule": "trimmed_mean", "n_bad": 1}


def lora(way: str) -> dict[str, object]:
    return {"task": {"task": "lora", "lora": way}}


def softmax(**changes: object) -> dict[str, object]:
    return {"task": "softmax", "n_features": 4, "n_classes": 3, "n_steps": 5} | changes


SCAFFOLD = {"task": softmax(learning_rate=0.1), "server": {"server": "scaffold"}}


def plan(**changes: object) -> Plan:
    peers = tuple(identity(number).peer_id for number in range(5))
    fixed = {
        "title": "t",
        "task": {"task": "t"},
        "initial": cid_of("i"),
        "members": peers,
        "deputies": peers,
        "is_evaluated": False,
    }
    return Plan(**({**fixed, "min_participants": 4} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"before": ({"before": "nnm", "n_bad": 1},), "rule": TRIMMED, "server": {"server": "fedavgm"}},
        SECURE,
        SECURE | {"privacy": DISTRIBUTED},
        SECURE | lora("ffa"),
        SECURE | lora("ffa") | {"privacy": DISTRIBUTED},
        SECURE | lora("rolora"),
        lora("rolora") | {"privacy": CENTRAL, "before": ()},
        lora("rolora") | {"rule": TRIMMED},
        lora("ffa") | {"rule": TRIMMED, "server": {"server": "fedadam"}, "compression": {"codec": "int8"}},
        *(lora(way) for way in ("flora", "flexlora", "hetlora", "fedex")),
        *(lora(way) | {"compression": {"codec": "int8"}} for way in ("hetlora", "fedex")),
        lora("flora") | {"rule": {"rule": "fedavg", "weights": "samples"}, "max_norm": 3.0},
        {"privacy": CENTRAL},
        {"privacy": CENTRAL | {"budget": BUDGET | {"accountant": "pld"}}, "compression": {"codec": "int8"}},
        {"privacy": EXAMPLES, "rule": TRIMMED},
        {"privacy": EXAMPLES, "rule": {"rule": "fedavg", "weights": "samples"}, "compression": {"codec": "int8"}},
        {"privacy": EXAMPLES | {"budget": BUDGET | {"accountant": "pld"}}, "rule": {"rule": "fedbuff"}},
        SECURE | {"privacy": EXAMPLES},
        lora("flora") | {"privacy": EXAMPLES},
        {"privacy": EXAMPLES, "gossip": {}},
        {"rule": {"rule": "fedbuff"}, "compression": {"codec": "top_k", "part": 0.01}},
        {"gossip": {"mixing": "moshpit"}},
        {"task": softmax(), "rule": {"rule": "fednova"}},
        SCAFFOLD,
        SCAFFOLD | {"n_selected": 4, "privacy": EXAMPLES, "server": {"server": "scaffold", "n_clients": 4}},
        SCAFFOLD | {"task": {"task": "lora", "base": "b", "optimizer": "sgd", "n_steps": 5, "learning_rate": 0.1}},
        {"task": softmax(optimizer="adam", proximal_mu=0.1), "rule": TRIMMED},
    ],
    ids=str,
)
def test_options_that_compose_are_accepted(changes: dict[str, object]) -> None:
    assert problems(plan(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (SECURE | {"rule": TRIMMED}, "nobody sees single updates"),
        (SECURE | {"before": ({"before": "bucketing"},)}, "cohorts"),
        (SECURE | {"rule": {"rule": "fedbuff"}}, "masks cancel within the one set"),
        (SECURE | {"task": {"task": "lora", "lora": {"lora": "flora"}}}, "each client's adapter by itself"),
        (lora("flora") | {"rule": TRIMMED}, "choose among halves"),
        (lora("hetlora") | {"before": ({"before": "bucketing"},)}, "choose among halves"),
        (lora("flexlora") | {"rule": {"rule": "fedbuff"}}, "began with something else"),
        (lora("fedex") | {"server": {"server": "fedavgm"}}, "in another manner"),
        (lora("fedex") | {"privacy": CENTRAL}, "not bounded by its clip"),
        (lora("flora") | {"gossip": {}}, "nobody looks at each one's adapter"),
        (lora("rolora") | {"rule": {"rule": "fedbuff"}}, "may be of the other half"),
        (lora("rolora") | {"server": {"server": "fedadam"}}, "would move that one too"),
        (lora("rolora") | {"gossip": {}}, "only where all have one result"),
        *(
            (lora(way) | {"compression": {"codec": "top_k", "part": 0.1}}, "stand for something else")
            for way in ("rolora", "flora", "flexlora")
        ),
        (lora("hetlora") | {"rule": {"rule": "fedavg", "weights": "samples"}}, "norms of their products"),
        *(
            ({"task": task, "rule": {"rule": "fednova"}}, "n times as far as one")
            for task in (
                softmax(momentum=0.5),
                softmax(proximal_mu=0.5),
                softmax(optimizer="adam"),
                {"task": "lora", "base": "b"},
            )
        ),
        *(
            (SCAFFOLD | changes, what)
            for changes, what in (
                ({"task": softmax(learning_rate=0.1, momentum=0.5)}, "a mean of gradients with plain SGD alone"),
                ({"task": {"task": "given"}}, "no steps to be corrected"),
                ({"rule": TRIMMED}, "fall apart, and every later step"),
                ({"before": ({"before": "bucketing"},)}, "fall apart, and every later step"),
                ({"rule": {"rule": "fednova"}}, "fall apart, and every later step"),
                ({"rule": {"rule": "fedavg", "weights": "samples"}}, "plain mean of the participants' own"),
                ({"rule": {"rule": "fedbuff"}}, "common variate of then"),
                (SECURE, "of a masked one nothing is left"),
                ({"privacy": CENTRAL}, "further with every round"),
                ({"compression": {"codec": "int8"}}, "follow the cut"),
                ({"gossip": {}}, "a model of its own"),
                ({"task": softmax()}, "takes n_steps and learning_rate from the task"),
                ({"task": softmax(learning_rate=0.1, n_steps=0)}, "takes n_steps and learning_rate from the task"),
                ({"server": {"server": "scaffold", "n_clients": 3}}, "less than min_participants"),
                ({"server": {"server": "scaffold", "n_clients": 6}}, "more than the members"),
            )
        ),
        ({"task": {"task": "lora", "lora": "flora", "rank": 0}}, "rank or alpha is not valid"),
        *(
            ({"rule": {"rule": "fltrust", "trusted": "ada"}, "before": (step,)}, "none is left to measure by")
            for step in ({"before": "nnm", "n_bad": 1}, {"before": "bucketing"})
        ),
        (SECURE | {"compression": {"codec": "int8"}}, "do not add up"),
        (SECURE | {"privacy": CENTRAL}, "take distributed noise"),
        ({"privacy": DISTRIBUTED}, "only its part of the noise"),
        (SECURE | {"privacy": DISTRIBUTED | {"budget": BUDGET | {"accountant": "pld"}}}, "take rdp"),
        ({"secure": {}}, "set max_norm"),
        ({"privacy": CENTRAL, "rule": {"rule": "fedavg", "weights": "samples"}}, "take uniform ones"),
        ({"privacy": CENTRAL, "rule": TRIMMED}, "promise too much"),
        ({"privacy": CENTRAL, "rule": {"rule": "fedbuff"}}, "several buffers"),
        ({"privacy": CENTRAL, "is_evaluated": True}, "told without noise"),
        ({"privacy": CENTRAL, "gossip": {}}, "before any noise"),
        ({"privacy": EXAMPLES, "is_evaluated": True}, "that is examples too"),
        ({"privacy": EXAMPLES | {"quantile": 0.5}}, "leave out quantile"),
        ({"privacy": EXAMPLES | {"multiplier": 5000.0}}, "lower the multiplier"),
        (SECURE | {"gossip": {}}, "no sum over a closed set"),
        ({"gossip": {}, "rule": TRIMMED}, "no closed set"),
        ({"gossip": {}, "rule": {"rule": "fedbuff"}}, "no buffer"),
        ({"gossip": {}, "server": {"server": "fedavgm"}}, "a model of its own"),
        ({"gossip": {}, "compression": {"codec": "int8"}}, "for each neighbour"),
        (SECURE | {"secure": {"threshold": 3, "n_colluders": 1}}, "too low"),
        (SECURE | {"secure": {"threshold": 5}}, "below the threshold of 5"),
        ({"privacy": CENTRAL | {"multiplier": 1e-7}}, "wrap around"),
        (
            SECURE | {"privacy": DISTRIBUTED, "secure": {"threshold": 5, "n_colluders": 4}, "min_participants": 5},
            "",
        ),
        ({"privacy": {"noise": "loud"}}, "the settings of privacy are not valid"),
        ({"compression": {"codec": "zip"}}, "there is no codec 'zip'"),
        ({"compression": {"codec": "top_k", "part": 2.0}}, "the settings of compression are not valid"),
        ({"gossip": {"mixing": "whispers"}}, "the settings of gossip are not valid"),
        ({"secure": {"treshold": 3}}, "the settings of secure are not valid"),
        ({"rule": {"rule": "best"}}, "there is no rule"),
        ({"server": {"server": "best"}}, "there is no server"),
        ({"before": ({"before": "best"},)}, "there is no before"),
        ({"task": {"task": "lora", "lora": "best"}}, "there is no lora"),
    ],
)
def test_options_that_do_not_compose_are_refused_with_the_reason(changes: dict[str, object], what: str) -> None:
    found = problems(plan(**changes))
    if not what:
        assert found == []
        return
    assert any(what in one for one in found), found


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": CENTRAL | {"multiplier": 5e-324}},
        {"privacy": CENTRAL | {"multiplier": 1e-200, "quantile": 0.5}},
        {"privacy": CENTRAL | {"quantile": 0.5, "count_noise": 5e-324}},
        {"privacy": CENTRAL | {"bound": 5e-324}},
        SECURE | {"max_norm": 5e-324},
        SECURE | {"max_norm": 1e308},
        SECURE | {"max_norm": 0.0},
        SECURE | {"max_norm": 0.0, "privacy": EXAMPLES},
    ],
)
def test_no_node_follows_a_plan_whose_numbers_end_in_none(changes: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        check(plan(**changes))


def test_every_row_of_the_table_is_about_options_that_there_are() -> None:
    assert {name for one, other, _ in TABLE for name in (one, other)} <= OPTIONS.keys()
    assert {name for name, _ in UNDECIDABLE} <= OPTIONS.keys()
    assert len({frozenset(row[:2]) for row in TABLE}) == len(TABLE)


def test_what_nobody_can_prove_is_said() -> None:
    assert undecidable(plan()) == []
    assert any("drew the noise by chance" in one for one in undecidable(plan(privacy=CENTRAL)))
    assert any("under masks" in one for one in undecidable(plan(**SECURE)))
    assert any("its own secret" in one for one in undecidable(plan(privacy=EXAMPLES)))
    assert any("result of its own" in one for one in undecidable(plan(gossip={})))


def test_what_merges_is_said_to_have_large_results() -> None:
    assert any("full matrix for each layer" in one for one in limits(plan(**lora("fedex"))))
    assert limits(plan(**lora("fedit"))) == []


def test_noise_in_gradients_is_said_to_hide_no_participant() -> None:
    assert any("not the participant" in one for one in limits(plan(privacy=EXAMPLES)))
    assert not any("not the participant" in one for one in limits(plan(privacy=CENTRAL)))


def test_a_public_selection_is_said_to_add_nothing_to_privacy() -> None:
    assert any("public seed" in one for one in limits(plan(privacy=CENTRAL, n_selected=3)))
    assert limits(plan(n_selected=3)) == []
