"""A coordinator gets the sum of the updates whoever drops out at whatever step, and never what opens one of them."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from agents.federation.secure import group
from agents.federation.secure.quantise import Grid, Words, mean_of_sum, quantise
from agents.federation.secure.sides import (
    Adder,
    Answer,
    Client,
    FalseParcel,
    FalseShares,
    SecureRefused,
    Setting,
    State,
)
from agents.federation.secure.terms import Secure, check_threshold, default_threshold
from storage.cid import RAW, Cid
from storage.keys import PeerId
from tests.agents.federation.village import identity

N, N_PARAMS = 7, 1000
GRID = Grid(1.0, N)
STEPS = ("keys", "shares", "masked", "consent", "answer")


def setting(n: int = N, threshold: int | None = None) -> Setting:
    peers = tuple(sorted(identity(number).peer_id for number in range(n)))
    return Setting(Cid.of(b"plan", RAW), 1, Cid.of(b"model", RAW), peers, threshold or default_threshold(n))


def update(number: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(number).uniform(-0.5, 0.5, N_PARAMS).astype(np.float32)


def weight(number: int) -> float:
    return (number + 1) / N


class Run:
    """All steps, with clients that fall silent before one of them."""

    def __init__(self, silent: dict[str, set[int]] | None = None, the_setting: Setting | None = None) -> None:
        self.setting = the_setting or setting()
        self.peers = self.setting.clients
        self.clients = {peer: Client(self.setting, peer) for peer in self.peers}
        self._silent = silent or {}

    def left(self, step: str) -> list[PeerId]:
        gone = {number for one in STEPS[: STEPS.index(step) + 1] for number in self._silent.get(one, set())}
        return [peer for number, peer in enumerate(self.peers) if number not in gone]

    def up_to_masked(self) -> None:
        self.keys = {peer: self.clients[peer].keys() for peer in self.left("keys")}
        hidden = {peer: self.clients[peer].shares(self.keys) for peer in self.left("shares")}
        any_holder = next(iter(self.keys))
        dealt = {peer: parts[any_holder] for peer, parts in hidden.items()}
        self.hidden_for = {peer: {one: parts[peer] for one, parts in hidden.items()} for peer in self.keys}
        self.adder = Adder(self.setting, self.keys, dealt, N_PARAMS + 1)
        for peer in self.left("masked"):
            self.adder.add(peer, self.masked(peer))

    def masked(self, peer: PeerId) -> Words:
        number = self.peers.index(peer)
        return self.clients[peer].masked(self.hidden_for[peer], quantise(update(number), weight(number), GRID))

    def answers(self, active: Iterable[PeerId] | None = None) -> dict[PeerId, Answer]:
        chosen = sorted(self.adder.active if active is None else active)
        consents = [peer for peer in self.left("consent") if self.clients[peer].consent(chosen)]
        return {peer: self.clients[peer].answer(chosen, self.adder.dropped, consents) for peer in self.left("answer")}

    def mean(self) -> tuple[np.ndarray, float]:  # type: ignore[type-arg]
        self.up_to_masked()
        return mean_of_sum(self.adder.total(self.answers()), len(self.adder.active), GRID)


def assert_mean_of(found: tuple[np.ndarray, float], numbers: Iterable[int]) -> None:  # type: ignore[type-arg]
    chosen = list(numbers)
    weights = np.array([weight(number) for number in chosen])
    expected = (np.stack([update(number) for number in chosen]) * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(found[0], expected, atol=len(chosen) * GRID.step / weights.sum() + 1e-6)
    assert found[1] == pytest.approx(weights.sum(), rel=1e-6)


def test_the_sum_is_that_of_the_updates() -> None:
    assert_mean_of(Run().mean(), range(N))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", range(N))
def test_one_client_may_fall_silent_at_any_step(step: str, number: int) -> None:
    found = Run({step: {number}}).mean()
    assert_mean_of(found, [one for one in range(N) if one != number or step in ("consent", "answer")])


@pytest.mark.parametrize("step", STEPS)
def test_as_many_as_the_threshold_leaves_may_fall_silent(step: str) -> None:
    silent = set(range(N - default_threshold(N)))
    found = Run({step: silent}).mean()
    assert_mean_of(found, [one for one in range(N) if one not in silent or step in ("consent", "answer")])


def test_one_client_may_fall_silent_at_each_step() -> None:
    assert_mean_of(Run({"shares": {0}, "answer": {1}}).mean(), range(1, N))


@pytest.mark.parametrize("step", STEPS)
def test_with_fewer_than_the_threshold_nothing_is_unmasked(step: str) -> None:
    silent = set(range(N - default_threshold(N) + 1))
    with pytest.raises(SecureRefused):
        Run({step: silent}).mean()


def test_a_masked_update_alone_looks_like_chance() -> None:
    run = Run()
    run.up_to_masked()
    other = Run()
    other.up_to_masked()
    peer = run.peers[0]
    words = Client(run.setting, peer, run.clients[peer].state._replace(shares=None)).masked(
        run.hidden_for[peer], quantise(update(0), weight(0), GRID)
    )
    bits = np.unpackbits(words.view(np.uint8)).mean()
    assert 0.47 < bits < 0.53


def test_a_client_on_both_lists_is_refused() -> None:
    run = Run({"masked": {0}})
    run.up_to_masked()
    active = sorted(run.adder.active)
    client = run.clients[run.peers[1]]
    client.consent(active)
    with pytest.raises(SecureRefused, match="on both lists"):
        client.answer(active, {*run.adder.dropped, active[0]}, active)


def test_a_client_answers_for_all_who_dropped_out_and_for_nobody_else() -> None:
    run = Run({"shares": {1}, "masked": {0}})
    run.up_to_masked()
    active = sorted(run.adder.active)
    client = run.clients[run.peers[2]]
    client.consent(active)
    for dropped in ((), run.peers[:2]):
        with pytest.raises(SecureRefused, match="are not those that shared secrets"):
            client.answer(active, dropped, active)
    assert list(client.answer(active, run.peers[:1], active).mask_keys) == [run.peers[0]]


def test_a_client_consents_to_one_active_set_alone_even_after_a_restart() -> None:
    run = Run()
    run.up_to_masked()
    peer = run.peers[0]
    run.clients[peer].consent(run.peers)
    again = Client(run.setting, peer, run.clients[peer].state)
    assert again.consent(run.peers) == run.peers
    with pytest.raises(SecureRefused, match="another active set"):
        again.consent(run.peers[:-1])


def test_a_client_sends_no_second_update() -> None:
    run = Run()
    run.up_to_masked()
    with pytest.raises(SecureRefused, match="no second one"):
        run.masked(run.peers[0])


@pytest.mark.parametrize("n_consents", [0, 4])
def test_a_client_tells_nothing_before_enough_have_consented(n_consents: int) -> None:
    run = Run()
    run.up_to_masked()
    client = run.clients[run.peers[0]]
    client.consent(run.peers)
    with pytest.raises(SecureRefused, match=f"{n_consents} clients consented, and 5 are needed"):
        client.answer(run.peers, (), run.peers[:n_consents])


@pytest.mark.parametrize(
    "active",
    [
        lambda run: [*run.peers[1:], identity(99).peer_id],
        lambda run: run.peers[1:],
        lambda run: run.peers[:4],
        lambda run: [*run.peers, run.peers[0]],
    ],
    ids=["a stranger", "without me", "too few", "one twice"],
)
def test_an_active_set_that_cannot_be_is_refused(active) -> None:  # type: ignore[no-untyped-def]
    run = Run()
    run.up_to_masked()
    with pytest.raises(SecureRefused):
        run.clients[run.peers[0]].consent(active(run))


def test_swapped_keys_are_noticed() -> None:
    run = Run()
    run.keys = {peer: client.keys() for peer, client in run.clients.items()}
    mine, other = run.peers[:2]
    with pytest.raises(SecureRefused, match="another key of mine"):
        run.clients[mine].shares(run.keys | {mine: run.keys[other]})


def test_shares_for_another_client_or_round_cannot_be_opened() -> None:
    run = Run()
    run.up_to_masked()
    first, second = run.peers[:2]
    state = run.clients[first].state._replace(shares=None)
    crossed = run.hidden_for[first] | {second: run.hidden_for[second][second]}
    with pytest.raises(SecureRefused, match="cannot be opened"):
        Client(run.setting, first, state).masked(crossed, quantise(update(0), 0.5, GRID))
    with pytest.raises(SecureRefused, match="cannot be opened"):
        Client(run.setting._replace(round=2), first, state).masked(
            run.hidden_for[first], quantise(update(0), 0.5, GRID)
        )


def test_a_share_that_is_not_of_its_secret_is_left_out() -> None:
    run = Run()
    run.up_to_masked()
    answers = run.answers()
    answers[run.peers[-1]].own_seeds[run.peers[0]] = bytes(32)
    assert_mean_of(mean_of_sum(run.adder.total(answers), N, GRID), range(N))


def test_with_too_few_shares_of_a_secret_its_dealer_is_named() -> None:
    run = Run()
    run.up_to_masked()
    answers = run.answers()
    for peer in run.peers[: N - default_threshold(N) + 1]:
        answers[peer].own_seeds[run.peers[0]] = bytes(32)
    with pytest.raises(FalseShares, match="contradict each other") as caught:
        run.adder.total(answers)
    assert caught.value.dealer == run.peers[0]


def test_shares_of_another_secret_than_the_one_vouched_for_are_noticed_by_each_holder() -> None:
    run = Run()
    run.up_to_masked()
    first, second = run.peers[:2]
    state = run.clients[first].state._replace(shares=None)
    parcel = run.hidden_for[first][second]
    for name in ("seed_points", "key_points"):
        points = getattr(parcel, name)
        for changed in ((group.public(group.new_secret()), *points[1:]), (*points[:-1], points[0])):
            crossed = run.hidden_for[first] | {second: parcel._replace(**{name: changed})}
            with pytest.raises(FalseParcel, match="are not of its secrets") as caught:
                Client(run.setting, first, state).masked(crossed, quantise(update(0), 0.5, GRID))
            assert caught.value.dealer == second


def test_masks_between_two_pairs_have_nothing_in_common() -> None:
    one = setting()
    purposes = {one.purpose(b"mask", *sorted(pair)) for pair in itertools.combinations(one.clients, 2)}
    purposes |= {other.purpose(b"mask", *one.clients[:2]) for other in (one._replace(round=2), setting(N - 1))}
    assert len(purposes) == N * (N - 1) // 2 + 1  # the round counts; the other clients do not


@pytest.mark.parametrize(
    ("n", "threshold", "n_colluders", "why"),
    [
        (10, 7, 3, ""),
        (10, 7, 4, "a threshold of 7 of 10 is too low for 4 colluders: take 8 or more"),
        (10, 5, 0, "a threshold of 5 of 10 is too low for 0 colluders: take 6 or more"),
        (3, 4, 0, "a threshold of 4 of 3 clients cannot be reached"),
    ],
)
def test_a_threshold_that_two_active_sets_could_get_round_is_refused(
    n: int, threshold: int, n_colluders: int, why: str
) -> None:
    assert check_threshold(n, threshold, n_colluders) == why


def test_a_round_needs_as_many_as_no_two_active_sets_can_get_round_whatever_its_plan_says() -> None:
    for n, threshold, n_colluders in itertools.product(range(4, 40), range(40), range(40)):
        needed = Secure(threshold=threshold, n_colluders=n_colluders).needed(n)
        assert 2 * needed > n + n_colluders and needed >= threshold
        assert needed > n or check_threshold(n, needed, n_colluders) == ""


def test_the_default_threshold_bears_a_coordinator_that_is_a_client() -> None:
    assert all(check_threshold(n, default_threshold(n), 1) == "" for n in range(4, 200))


def test_secrets_of_two_clients_are_never_alike() -> None:
    assert len({secret for _ in range(10) for secret in State.new()[:3]}) == 30
