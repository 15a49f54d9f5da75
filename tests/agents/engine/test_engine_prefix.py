from hypothesis import given
from hypothesis import strategies as st

from agents.engine.worker.generation.prefix import MIN_TOKENS, Prefixes, common

texts = st.lists(st.integers(0, 1), min_size=MIN_TOKENS, max_size=MIN_TOKENS + 12)
puts = st.lists(st.tuples(st.sampled_from("ab"), texts), max_size=12)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_beginning_is_the_longest(one, other):
    n = common(tuple(one), tuple(other))
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


@given(puts, st.sampled_from("ab"), texts, st.integers(0, 300))
def test_the_best_beginning_of_the_same_owner_is_found_within_the_budget(given_puts, owner, asked, max_bytes):
    kept = Prefixes()
    for each, ids in given_puts:
        kept.put(each, ids, (each, tuple(ids)), len(ids), max_bytes)
        assert kept.n_bytes <= max_bytes
    found = kept.find(owner, asked)
    if found:
        n, (whose, ids) = found
        assert whose == owner and n == common(ids, tuple(asked)) >= MIN_TOKENS
    if max_bytes >= sum(len(ids) for _, ids in given_puts):
        best = max((common(tuple(ids), tuple(asked)) for each, ids in given_puts if each == owner), default=0)
        assert (found[0] if found else 0) == (best if best >= MIN_TOKENS else 0)


def test_what_continues_an_entry_takes_its_place_and_the_oldest_gives_way():
    kept, begin = Prefixes(), list(range(20))
    kept.put("a", begin, "short", 20, 100)
    kept.put("a", [*begin, 7], "long", 21, 100)
    assert (len(kept), kept.n_bytes) == (1, 21)
    kept.put("a", begin, "short again", 20, 100)
    assert kept.find("a", begin) == (20, "long")
    kept.put("a", range(100, 140), "other", 40, 100)
    assert kept.find("a", begin) is not None, "used a moment ago"
    kept.put("a", range(200, 250), "third", 50, 100)
    assert kept.find("a", range(100, 140)) is None and kept.n_bytes <= 100
    kept.shrink(0)
    assert (len(kept), kept.n_bytes) == (0, 0)


def test_short_and_oversized_ones_are_not_kept():
    kept = Prefixes()
    kept.put("a", range(MIN_TOKENS - 1), "short", 1, 100)
    kept.put("a", range(50), "large", 101, 100)
    assert len(kept) == 0
