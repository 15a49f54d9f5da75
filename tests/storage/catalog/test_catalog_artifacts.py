import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import MIGRATIONS, Catalog
from storage.catalog.adapters import AdapterState
from storage.catalog.artifacts import (
    MAX_OWN_TAGS,
    MAX_ROW_TEXT_BYTES,
    ArtifactRow,
    ArtifactTable,
    Best,
    Condition,
)
from storage.catalog.database import APPLICATION_ID, Database
from storage.catalog.lineage import LineageTable, Origin, Parent
from storage.catalog.words import MAX_SEARCH_CHARS, MAX_SEARCH_WORDS, match_of
from storage.cid import DAG_CBOR, Cid
from storage.errors import NotFound, StorageError, TooLarge
from storage.keys import Identity

ALICE, BOB = (Identity(name * 32).peer_id for name in (b"a", b"b"))


def cid(number: int) -> Cid:
    return Cid.of(number.to_bytes(2, "big"), DAG_CBOR)


def row(number: int = 0, **changes: Any) -> ArtifactRow:
    plain = ArtifactRow(
        manifest=cid(number),
        kind="dataset",
        name="verses",
        version=1,
        publisher=ALICE,
        n_bytes=1 << 40,
        created_unix_s=2.0 + number,
        files=Cid.of(b"files"),
        licence="CC0-1.0",
        description="Old English poems",
        parents=(Parent(cid(1000), "data"),),
        tags=("text", "english"),
        capabilities=("training",),
        metrics={"loss": 1.5},
    )
    return dataclasses.replace(plain, **changes)


texts = st.text(max_size=12)
labels = st.lists(texts, max_size=4, unique=True).map(tuple)
rows = st.builds(
    ArtifactRow,
    manifest=st.binary(min_size=1, max_size=9).map(lambda data: Cid.of(data, DAG_CBOR)),
    kind=st.sampled_from(["dataset", "model", "checkpoint", "what comes later"]),
    name=texts,
    version=st.integers(0, 1 << 31),
    publisher=st.sampled_from([ALICE, BOB]),
    n_bytes=st.integers(0, 1 << 50),
    created_unix_s=st.floats(0, 1e11),
    base=st.none() | texts,
    files=st.none() | st.binary(max_size=5).map(Cid.of),
    licence=st.none() | texts,
    description=st.text(max_size=200),
    is_own=st.booleans(),
    parents=st.sets(st.tuples(st.integers(0, 9).map(cid), texts), max_size=4).map(
        lambda pairs: tuple(Parent(*pair) for pair in sorted(pairs))
    ),
    origins=st.dictionaries(st.tuples(st.integers(0, 9).map(cid), texts), texts, max_size=4).map(
        lambda told: tuple(
            sorted((Origin(*edge, label) for edge, label in told.items()), key=lambda o: (o.role, o.content))
        )
    ),
    tags=labels,
    capabilities=labels,
    metrics=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=4),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(rows)
def test_an_artifact_comes_back_as_it_was_stored(catalog: Catalog, artifact: ArtifactRow) -> None:
    catalog.artifacts.remove(artifact.manifest)
    assert catalog.artifacts.put(artifact)
    assert catalog.artifacts.get(artifact.manifest) == artifact
    found = catalog.artifacts.find(kind=artifact.kind, name=artifact.name, publisher=artifact.publisher)
    assert artifact in found
    assert not catalog.artifacts.put(artifact)
    assert catalog.artifacts.remove(artifact.manifest)
    assert not catalog.artifacts.remove(artifact.manifest)
    assert catalog.artifacts.get(artifact.manifest) is None
    assert catalog.lineage.parents(artifact.manifest) == ()


def test_a_query_gives_what_fits_everything(catalog: Catalog) -> None:
    plain, model = row(0), row(1, kind="model", name="tiny", base="bafytiny", capabilities=("chat",))
    by_bob, own = row(2, publisher=BOB, version=3), row(3, is_own=True, tags=("food",), metrics={})
    for one in (plain, model, by_bob, own):
        catalog.artifacts.put(one)
    find = catalog.artifacts.find
    assert find() == [own, by_bob, model, plain]
    assert find(limit=2) == [own, by_bob]
    assert find(limit=-1) == []
    assert find(kind="model") == [model] == find(bases=["bafytiny", "other"]) == find(capability="chat")
    assert find(publisher=BOB) == [by_bob] == find(version=3) == find(name="verses", publisher=BOB)
    assert find(is_own=True) == [own] == find(tag="food")
    assert find(tag="chat") == [] == find(capability="food")
    assert find(name="' OR 1=1 --") == [] == find(tag='"; DROP TABLE artifacts')


def test_metrics_are_compared_and_the_best_comes_first(catalog: Catalog) -> None:
    for number, value in enumerate((2.5, 1.5, 3.5)):
        catalog.artifacts.put(row(number, metrics={"loss": value, "accuracy": -value}))
    catalog.artifacts.put(row(9, metrics={"other": 1.0}))

    def losses(**query: Any) -> list[float]:
        return [one.metrics["loss"] for one in catalog.artifacts.find(**query)]

    assert losses(best=Best("loss")) == [1.5, 2.5, 3.5] == losses(best=Best("accuracy", is_highest=True))
    assert losses(metrics=[Condition("loss", "<", 2.5)]) == [1.5]
    assert losses(metrics=[Condition("loss", "<=", 2.5)], best=Best("loss")) == [1.5, 2.5]
    assert losses(metrics=[Condition("loss", ">", 1.5), Condition("loss", "<", 3.5)]) == [2.5]
    assert losses(metrics=[Condition("loss", ">=", 3.5)]) == [3.5] == losses(metrics=[Condition("loss", "=", 3.5)])
    assert catalog.artifacts.find(metrics=[Condition("x' OR 1 --", "<", 9.0)]) == []


def test_words_are_found_from_their_beginning_in_names_labels_and_descriptions(catalog: Catalog) -> None:
    named, tagged = row(0, name="beowulf", description="", tags=()), row(1, tags=("beowulf-2",), description="Épic")
    described = row(2, description="not beowulf, who fought\x00the dragon", tags=())
    for one in (described, tagged, named):
        catalog.artifacts.put(one)

    def found(words: str) -> list[ArtifactRow]:
        return catalog.artifacts.find(words=words)

    assert found("beow") == [named, tagged, described]
    assert found("BEOWULF epic") == [tagged]
    assert found("dragon beo") == [described]
    assert found("beowulf dragons") == [] == found("") == found("* \" ' ( ) : ^ -")
    catalog.artifacts.remove(described.manifest)
    assert found("dragon") == []
    catalog.artifacts.put(row(3, description="nothing"))  # may get the number of the one that went
    assert found("dragon") == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text(max_size=60) | st.text(alphabet="abNOTERAD\"'*()^:-+{} \x00\ud800", max_size=30))
def test_no_search_is_a_syntax_error(catalog: Catalog, search: str) -> None:
    catalog.artifacts.find(words=search)


@pytest.mark.parametrize("search", ['"', "NEAR(a b)", "name:x", "a AND", "OR", "a*b", "-a", "^x", "{a b}: c", "x + y"])
def test_the_indexs_own_syntax_means_nothing(catalog: Catalog, search: str) -> None:
    catalog.artifacts.put(row(description="plain words"))
    assert catalog.artifacts.find(words=search) == []


def test_a_search_is_bounded() -> None:
    assert match_of("a b") == '"a"* "b"*'
    assert match_of(" ".join(["a"] * 999)).count("*") == MAX_SEARCH_WORDS  # type: ignore[union-attr]
    assert len(match_of("x" * 9999) or "") == MAX_SEARCH_CHARS + 3
    assert match_of("?!") is None


def test_the_users_tags_are_found_and_outlive_a_new_reading(catalog: Catalog) -> None:
    catalog.artifacts.put(row(is_verified=False, description="", parents=()))
    catalog.artifacts.set_own_tags(cid(0), ["mine", "best", "mine"])
    assert catalog.artifacts.unverified() == [cid(0)]
    assert not catalog.artifacts.put(row())
    expected = row(own_tags=("best", "mine"))
    assert catalog.artifacts.find(tag="mine") == [expected] == catalog.artifacts.find(words="best")
    assert catalog.artifacts.unverified() == []
    catalog.artifacts.set_own_tags(cid(0), [])
    assert catalog.artifacts.get(cid(0)) == row() and catalog.artifacts.find(words="mine") == []
    with pytest.raises(NotFound, match="covey artifact ls"):
        catalog.artifacts.set_own_tags(cid(9), ["x"])
    with pytest.raises(TooLarge):
        catalog.artifacts.set_own_tags(cid(0), map(str, range(MAX_OWN_TAGS + 1)))


def test_what_was_verified_is_not_overwritten_but_may_become_our_own(catalog: Catalog) -> None:
    catalog.artifacts.put(row())
    catalog.artifacts.put(row(name="other", is_own=True))
    catalog.artifacts.put(row(name="other", is_verified=False))
    assert catalog.artifacts.get(cid(0)) == row(is_own=True)


def test_an_artifact_is_bounded(catalog: Catalog) -> None:
    for changes in ({"description": "x" * (MAX_ROW_TEXT_BYTES + 1)}, {"tags": ("x" * MAX_ROW_TEXT_BYTES,)}):
        with pytest.raises(TooLarge):
            catalog.artifacts.put(row(**changes))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            catalog.artifacts.put(row(metrics={"loss": wrong}))
    assert catalog.artifacts.find() == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[ArtifactTable]:
    database = Database.open(tmp_path / "small.db", MIGRATIONS)
    yield ArtifactTable(database, LineageTable(database), max_rows=2)
    database.close()


def test_a_full_catalog_refuses_more_and_takes_adapters_which_have_their_own_bound(small: ArtifactTable) -> None:
    for number in range(2):
        small.put(row(number))
    with pytest.raises(TooLarge, match="covey artifact rm"):
        small.put(row(2))
    assert not small.put(row(0))
    assert small.put(row(3, kind="adapter"))


def test_more_rows_than_one_statement_asks_for_keep_their_labels(catalog: Catalog) -> None:
    with catalog.transaction():
        for number in range(600):
            catalog.artifacts.put(row(number, tags=(f"t{number}",), metrics={"n": float(number)}))
    found = catalog.artifacts.find()
    assert [(one.tags, one.metrics) for one in found] == [
        ((f"t{number}",), {"n": float(number)}) for number in reversed(range(600))
    ]


def test_ancestors_and_descendants_come_nearest_first_and_once(catalog: Catalog) -> None:
    """0 -> 1 -> 3, 0 -> 2 -> 3, 3 -> 4, and 4 is not here."""
    edges = {0: (1, 2), 1: (3,), 2: (3,), 3: (4,)}
    for child, parents in edges.items():
        catalog.artifacts.put(row(child, parents=tuple(Parent(cid(parent), "data") for parent in parents)))
    up, down = catalog.lineage.ancestors(cid(0)), catalog.lineage.descendants(cid(4))
    assert up.is_whole and down.is_whole
    assert [(one.manifest, one.n_steps) for one in up.relatives] == [
        *sorted([(cid(1), 1), (cid(2), 1)]),
        (cid(3), 2),
        (cid(4), 3),
    ]
    assert [one.n_steps for one in down.relatives] == [1, 2, 2, 3]
    assert {one.of for one in down.relatives if one.n_steps == 2} == {cid(3)}
    assert catalog.lineage.ancestors(cid(4)).relatives == ()
    catalog.artifacts.remove(cid(3))
    assert cid(4) not in {one.manifest for one in catalog.lineage.ancestors(cid(0)).relatives}


def test_a_loop_in_the_table_ends_and_a_long_line_is_cut(catalog: Catalog) -> None:
    for number in range(400):
        catalog.artifacts.put(row(number, parents=(Parent(cid((number + 1) % 400), "previous"),)))
    cut = catalog.lineage.ancestors(cid(0))
    assert not cut.is_whole and cut.relatives[-1].n_steps == 256
    assert len(catalog.lineage.descendants(cid(0), limit=5).relatives) == 5
    catalog.artifacts.put(row(500, parents=(Parent(cid(500), "self"), Parent(cid(501), "a"))))
    catalog.artifacts.put(row(501, parents=(Parent(cid(500), "b"),)))
    loop = catalog.lineage.ancestors(cid(500))
    assert loop.is_whole and [one.manifest for one in loop.relatives] == [cid(501)]


def test_a_wide_generation_is_asked_for_in_parts(catalog: Catalog) -> None:
    with catalog.transaction():
        for number in range(600):
            catalog.artifacts.put(row(number, parents=(Parent(cid(900), "data"),)))
        catalog.artifacts.put(row(901, parents=tuple(Parent(cid(number), "data") for number in range(600))))
    down = catalog.lineage.descendants(cid(900))
    assert down.is_whole and len(down.relatives) == 601 and down.relatives[-1].manifest == cid(901)


CONTENT, BASE = Cid.of(b"poems"), Cid.of(b"weights", DAG_CBOR)


def made(number: int, **changes: Any) -> ArtifactRow:
    return row(number, parents=(), **changes)


def kin(catalog: Catalog, number: int) -> tuple[list[Any], list[Any]]:
    """The nearest ancestors and descendants: role and manifest."""
    up, down = catalog.lineage.ancestors(cid(number)), catalog.lineage.descendants(cid(number))
    return [one[:2] for one in up.relatives if one.n_steps == 1], [
        one[:2] for one in down.relatives if one.n_steps == 1
    ]


def test_what_is_told_by_its_content_is_found_when_an_artifact_consists_of_it(catalog: Catalog) -> None:
    catalog.artifacts.put(made(1, origins=(Origin(CONTENT, "data", "poems.txt"), Origin(BASE, "base"))))
    assert kin(catalog, 1) == ([(BASE, "base"), (CONTENT, "data")], [])  # for itself, as long as nobody is it
    catalog.artifacts.put(made(2, kind="dataset", files=CONTENT))
    catalog.artifacts.put(made(3, kind="model", base=str(BASE)))
    catalog.artifacts.put(made(4, kind="checkpoint", base=str(BASE)))  # of the model, and not the model
    assert kin(catalog, 1)[0] == [(cid(3), "base"), (cid(2), "data")]
    assert kin(catalog, 2) == ([], [(cid(1), "data")]) and kin(catalog, 3) == ([], [(cid(1), "base")])
    assert kin(catalog, 4) == ([], [])
    catalog.artifacts.put(made(5, kind="model", origins=(Origin(cid(9), "merged_adapter"),)))
    catalog.artifacts.put(made(6, files=cid(9), origins=(Origin(CONTENT, "data"),)))
    assert [(one.manifest, one.n_steps, one.of) for one in catalog.lineage.ancestors(cid(5)).relatives] == [
        (cid(6), 1, cid(5)),
        (cid(2), 2, cid(6)),
    ]
    assert {one.manifest for one in catalog.lineage.descendants(cid(2)).relatives} == {cid(1), cid(5), cid(6)}
    catalog.artifacts.remove(cid(1))
    assert catalog.lineage.origins(cid(1)) == ()


def test_a_models_copy_stands_for_the_model_that_adapters_name(catalog: Catalog) -> None:
    copy = Cid.of(b"cast", DAG_CBOR)
    catalog.artifacts.put(made(1, origins=(Origin(BASE, "base"),)))
    catalog.artifacts.put(made(2, kind="model", base=str(copy), origins=(Origin(BASE, "derived_from"),)))
    assert kin(catalog, 1)[0] == [(cid(2), "base")]
    assert kin(catalog, 2) == ([(BASE, "derived_from")], [(cid(1), "base")])  # and not for its own source
    catalog.artifacts.put(made(3, kind="model", base=str(BASE)))
    assert kin(catalog, 1)[0] == [(cid(3), "base")] and kin(catalog, 2)[0] == [(cid(3), "derived_from")]


def test_of_several_that_consist_of_the_same_the_users_own_stands_for_all(catalog: Catalog) -> None:
    catalog.artifacts.put(made(9, origins=(Origin(CONTENT, "data"),)))
    for number, created_unix_s, is_own in ((1, 5.0, False), (2, 3.0, False), (3, 9.0, True)):
        expected = {1: 1, 2: 2, 3: 3}[number]  # the older, then one's own
        catalog.artifacts.put(made(number, files=CONTENT, created_unix_s=created_unix_s, is_own=is_own))
        assert kin(catalog, 9)[0] == [(cid(expected), "data")]
    assert all(kin(catalog, number)[1] == [(cid(9), "data")] for number in (1, 2, 3))


def test_an_artifact_that_says_it_was_made_of_itself_is_no_relative_of_its_own(catalog: Catalog) -> None:
    catalog.artifacts.put(made(1, kind="model", files=CONTENT, base=str(BASE), origins=(Origin(CONTENT, "data"),)))
    assert kin(catalog, 1) == ([], [])


def old_catalog(path: Path) -> None:
    """A catalog as the first version wrote it."""
    connection = sqlite3.connect(path)
    for statement in MIGRATIONS[0].split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    values = (cid(7), "poet", "bafybase", ALICE, 3, 8, 1 << 20, '["verse", "english", "verse"]', '{"loss": 1.5}', 1.0)
    rest = (2.0, "ready", None, 4.0, "/adapters/poet", 1)
    connection.execute(f"INSERT INTO adapters VALUES ({', '.join('?' * 16)})", values + rest)
    removed = (cid(8), "cook", "bafybase", BOB, 1, 8, 5, "[]", "{}", 1.0, 1.0, "removed", "told so", 3.0, None, 0)
    connection.execute(f"INSERT INTO adapters VALUES ({', '.join('?' * 16)})", removed)
    connection.execute("INSERT INTO models VALUES ('tiny', 'bafytiny', NULL, '/m', 'wheel:x', '{}', 1.0)")
    connection.commit()
    connection.close()


def test_a_catalog_of_the_first_version_keeps_its_adapters(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    old_catalog(path)
    for _ in range(2):
        catalog = Catalog.open(path)
        (poet,) = catalog.adapters.query(but_not=AdapterState.REMOVED)
        assert (poet.manifest, poet.name, poet.base, poet.publisher, poet.version) == (
            cid(7),
            "poet",
            "bafybase",
            ALICE,
            3,
        )
        assert (poet.tags, poet.metrics, poet.rank, poet.n_bytes) == (("verse", "english"), {"loss": 1.5}, 8, 1 << 20)
        assert (poet.state, poet.folder, poet.ready_unix_s, poet.is_own) == ("ready", "/adapters/poet", 4.0, True)
        assert [one.reason for one in catalog.adapters.query(state=AdapterState.REMOVED)] == ["told so"]
        assert catalog.adapters.came_since(0.0) == {cid(8): 5}
        (seen,) = catalog.artifacts.find(words="verse poet")
        assert (seen.kind, seen.state, seen.is_verified) == ("adapter", "ready", False)
        assert sorted(catalog.artifacts.unverified()) == sorted([cid(7), cid(8)])
        assert len(catalog.artifacts.find(with_removed=True)) == 2
        assert [model.name for model in catalog.models.list()] == ["tiny"]
        catalog.close()


def test_what_is_known_as_an_artifact_alone_is_no_adapter(catalog: Catalog) -> None:
    catalog.artifacts.put(row(kind="adapter"))
    assert catalog.adapters.get(cid(0)) is None
    with pytest.raises(StorageError):
        catalog.lineage.put(cid(77), [Parent(cid(0), "data")])
