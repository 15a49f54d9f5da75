"""A lookup ends at the closest that answer, whoever lies or is silent, and asks nobody twice."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.lookup import CLOSEST, MAX_ASKED, MAX_KNOWN, Lookup
from protocols.sweep import key_of
from storage.keys import PeerId

OWN = PeerId.of(bytes(32))
KEY = b"/ipns/somebody"


def peers_of(n: int, start: int = 1) -> list[PeerId]:
    return [PeerId.of(number.to_bytes(32)) for number in range(start, start + n)]


def distance(peer: PeerId) -> int:
    return key_of(peer) ^ key_of(KEY)


def walk(lookup: Lookup, known: dict[PeerId, list[PeerId]], gone: set[PeerId]) -> list[PeerId]:
    asked = []
    while (peer := lookup.take()) is not None:
        asked.append(peer)
        if peer in gone:
            lookup.failed(peer)
        else:
            lookup.answered(peer, known[peer])
    return asked


@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 120), gone_frac=st.floats(0, 0.6))
def test_it_finds_the_closest_that_are_there(seed: int, n: int, gone_frac: float) -> None:
    chance = random.Random(seed)
    peers = peers_of(n)
    gone = set(chance.sample(peers, int(gone_frac * n)))
    near = sorted(peers, key=distance)
    # Each knows some of everybody, and those around the key: so every table leads there.
    known = {peer: [*near[:CLOSEST], *chance.sample(peers, min(n, 5))] for peer in peers}
    lookup = Lookup(KEY, OWN, chance.sample(peers, min(n, 30)))
    asked = walk(lookup, {peer: told[:CLOSEST] for peer, told in known.items()}, gone)
    assert len(asked) == len(set(asked))
    found = lookup.closest()
    assert found == sorted(found, key=distance)
    assert not set(found) & gone
    if found:
        named = [peer for peer in near[:CLOSEST] if peer not in gone]
        assert set(named) <= set(found)


def test_a_liar_that_names_ever_closer_peers_costs_a_bounded_number_of_questions() -> None:
    lookup = Lookup(KEY, OWN, peers_of(1))
    n_asked, next_made_up = 0, 1000
    while (peer := lookup.take()) is not None:
        n_asked += 1
        made_up = peers_of(CLOSEST, next_made_up)
        next_made_up += CLOSEST
        lookup.answered(peer, made_up)
    assert n_asked <= MAX_ASKED


def test_an_answer_names_no_more_than_the_standard_has_and_little_is_remembered() -> None:
    lookup = Lookup(KEY, OWN, peers_of(3 * MAX_KNOWN))
    assert len(lookup._distance) == MAX_KNOWN
    small = Lookup(KEY, OWN, peers_of(1))
    first = small.take()
    assert first is not None
    small.answered(first, [OWN, *peers_of(1000, 50)])
    assert len(small._distance) == CLOSEST  # one known before, the node itself left out


def test_who_was_not_asked_does_not_count() -> None:
    lookup = Lookup(KEY, OWN, peers_of(2))
    lookup.answered(peers_of(1, 9)[0], peers_of(5, 20))
    assert lookup.closest() == [] and len(lookup._distance) == 2
