"""Reading every block again: what is found, and where a run that was cut short goes on."""

import pytest

from storage import verify as verify_module
from storage.blockstore import MadeBlock, Store, Visibility
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.pins import PinKind, Pins, PinState
from storage.roots import Roots
from storage.verify import resumes_after, verify, verify_kept
from tests.storage.losing import lose

BLOCKS = [MadeBlock.of(bytes([number])) for number in range(30)]


def test_every_block_is_read_once(store: Store) -> None:
    store.put_many(BLOCKS)
    checked = list(verify(store))
    assert len(checked) == 30 and all(one.n_bytes == 1 and one.problem is None for one in checked)


def test_a_run_that_is_cut_short_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_NOTE_EVERY", 10)
    store.put_many(BLOCKS)
    run = verify(store)
    first = [next(run) for _ in range(15)]
    run.close()
    assert resumes_after(store) == first[9].cid
    assert [one.cid for one in verify(store)][:5] == [one.cid for one in first[10:]]
    assert resumes_after(store) is None
    assert len(list(verify(store))) == 30


def test_a_sample_takes_others_with_each_seed_and_leaves_the_run_over_all_alone(store: Store) -> None:
    store.put_many(BLOCKS)
    samples = [[one.cid for one in verify(store, sample_frac=0.4, seed=seed)] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert 0 < len(samples[0]) < 30


def test_reading_is_no_use(store: Store) -> None:
    store.put_many(BLOCKS)
    began = store.begin_sweep()
    list(verify(store))
    assert store.sweep([block.cid for block in BLOCKS], began).n_blocks == 30


def test_what_is_kept_and_not_here_is_told(store: Store) -> None:
    leaves = BLOCKS[:6]
    parents = [MadeBlock.of(dag_cbor.encode([leaf.cid for leaf in leaves[at:]]), DAG_CBOR) for at in (0, 2, 4)]
    store.put_many([*leaves, *parents])
    pins, roots = Pins(store), Roots(store)
    pins.add(parents[0].cid, state=PinState.COMPLETE)
    pins.add(parents[1].cid, state=PinState.FETCHING)
    pins.add(BLOCKS[7].cid, kind=PinKind.DIRECT, state=PinState.COMPLETE)
    roots.publish(parents[2].cid, Visibility.PUBLIC, without=[leaves[5].cid])
    lost = [leaves[0], leaves[4], leaves[5], parents[1]]

    def told() -> list[Cid]:
        return [one.cid for one in verify_kept(store, pins.list(), roots.list()) if one.problem]

    assert told() == [BLOCKS[7].cid]
    lose(store, [block.cid for block in lost])
    assert set(told()) == {BLOCKS[7].cid, leaves[0].cid, leaves[4].cid, leaves[5].cid}
    pins.remove(parents[0].cid)
    assert set(told()) == {BLOCKS[7].cid, leaves[4].cid}
