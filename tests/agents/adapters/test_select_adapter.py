import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.adapters.select import Base, Best, Latest, Pinned, Ready, choose, parse_policy
from agents.errors import UnknownName
from storage.cid import Cid
from storage.keys import PeerId

ANN, BOB = PeerId.of(b"a" * 32), PeerId.of(b"b" * 32)


def ready(name="poet", version=1, publisher=ANN, ready_s=0.0, **metrics):
    return Ready(Cid.of(f"{name}{version}{publisher}".encode()), name, version, publisher, ready_s, metrics)


def test_latest_is_the_last_that_became_ready():
    assert choose(Latest(), [ready(ready_s=5.0), ready("clerk", ready_s=9.0)]).name == "clerk"
    assert choose(Latest(), []) is None


def test_an_old_version_that_arrives_late_is_not_the_latest():
    assert choose(Latest(), [ready(version=1, ready_s=9.0), ready(version=2, ready_s=5.0)]).version == 2


def test_versions_of_other_publishers_do_not_count_against_each_other():
    assert choose(Latest(), [ready(version=1, ready_s=9.0, publisher=BOB), ready(version=2)]).publisher == BOB


def test_best_takes_the_metric_in_its_direction_and_skips_who_lacks_it():
    several = [
        ready(version=1, loss=2.0),
        ready(version=2, loss=1.0),
        ready(version=3),
        ready(version=4, loss=math.nan),
    ]
    assert choose(Best("loss", False), several).version == 2
    assert choose(Best("loss", True), several).version == 1
    assert choose(Best("bleu", True), several) is None


def test_a_pin_names_a_cid_a_name_or_a_version():
    several = [ready(version=1), ready(version=2), ready("clerk", 7)]
    assert choose(Pinned(cid=several[0].cid), several).version == 1
    assert choose(Pinned(name="poet"), several).version == 2
    assert choose(Pinned(name="poet", version=1), several).version == 1
    assert choose(Base(), several) is None
    for missing in (Pinned(name="nobody"), Pinned(name="poet", version=9), Pinned(cid=Cid.of(b"?"))):
        with pytest.raises(UnknownName, match="covey adapter ls"):
            choose(missing, several)


def test_a_policy_is_read_from_text():
    cid = Cid.of(b"x")
    assert parse_policy("latest") == Latest()
    assert parse_policy("none") == Base()
    assert parse_policy("best:loss:min") == Best("loss", False)
    assert parse_policy("best:bleu:max") == Best("bleu", True)
    assert parse_policy(str(cid)) == Pinned(cid=cid)
    assert parse_policy("poet") == Pinned(name="poet")
    assert parse_policy("poet@3") == Pinned(name="poet", version=3)
    for bad in ("poet@", "@3", "poet@x"):
        with pytest.raises(UnknownName):
            parse_policy(bad)


READY = st.builds(
    ready,
    st.sampled_from(["poet", "clerk"]),
    st.integers(1, 4),
    st.sampled_from([ANN, BOB]),
    st.floats(0, 3),
    loss=st.floats(),
)
POLICY = st.sampled_from([Latest(), Base(), Best("loss", True), Best("loss", False)])


@given(st.lists(READY, max_size=8, unique_by=lambda one: one.cid), POLICY, st.randoms())
def test_the_order_of_the_adapters_never_changes_the_choice(several, policy, rng):
    shuffled = list(several)
    rng.shuffle(shuffled)
    assert choose(policy, several) is choose(policy, shuffled)
