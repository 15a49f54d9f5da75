"""Manifests of models, datasets and checkpoints: what is accepted, and that nothing else is."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import artifacts as wire
from protocols.adapters import Base, Manifest, manifest_content
from protocols.artifacts import (
    Checkpoint,
    Dataset,
    Model,
    Origin,
    Parent,
    artifact_content,
    check_artifact,
    describe,
    open_artifact,
)
from protocols.entry import make_entry, open_entry
from protocols.errors import Malformed, Remote, TooBig
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity

ANN = Identity(b"a" * 32)
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "artifact.json").read_text())["vectors"]
BASE = Base(fingerprint=Cid.of(b"base", DAG_CBOR), name="tiny", architecture="LlamaForCausalLM")

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
words = st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True), max_size=4).map(tuple)
texts = st.text(max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)  # no negative zero
entries = st.binary(max_size=5).map(lambda data: Cid.of(data, DAG_CBOR))
common: dict[str, Any] = {
    "name": names,
    "version": st.integers(1, (1 << 31) - 1),
    "files": st.binary(max_size=5).map(Cid.of),
    "n_bytes": st.integers(0, 1 << 46),
    "parents": st.lists(
        st.builds(Parent, entry=entries, role=st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)), max_size=4
    ).map(tuple),
    "capabilities": words,
    "tags": words,
    "metrics": st.dictionaries(texts, floats, max_size=4),
    "facts": st.dictionaries(
        texts, texts | floats | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1), max_size=4
    ),
    "description": st.text(max_size=100),
    "licence": st.none() | texts,
    "audience": st.sampled_from(["members", "flock", "public"]),
    "created_unix_s": st.integers(0, 1 << 40),
}
based = {"base": st.none() | st.builds(Base, fingerprint=entries, name=texts, architecture=texts)}
artifacts = st.one_of(
    st.builds(Dataset, **common),
    st.builds(Model, **common, **based, derived_from=st.none() | entries),
    st.builds(Checkpoint, **common, **based, step=st.none() | st.integers(0, (1 << 63) - 1)),
)


def entry_of(artifact: Any, kind: str | None = None, scope: str | None = None, **changes: Any) -> Any:
    return make_entry(
        ANN,
        kind or artifact.kind,
        scope or artifact.name,
        1,
        [parent.entry for parent in artifact.parents],
        artifact_content(artifact) | changes,
    )


def dataset(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {"name": "verses", "version": 1, "files": Cid.of(b"f"), "n_bytes": 5, "created_unix_s": 9}
    return Dataset(**fields | changes)


@given(artifacts)
def test_a_manifest_comes_back_from_its_entry_as_it_was(artifact: Any) -> None:
    entry = entry_of(artifact)
    opened = open_artifact(open_entry(entry.block, entry.body_block))
    assert opened == artifact and type(opened) is type(artifact)
    assert check_artifact(artifact) == artifact
    said = describe(entry)
    for field in ("name", "version", "files", "n_bytes", "parents", "tags", "metrics", "description", "audience"):
        assert getattr(said, field) == getattr(artifact, field)
    base = getattr(artifact, "base", None)
    assert (said.kind, said.base) == (artifact.kind, base and str(base.fingerprint))
    assert artifact.files in dag_cbor.links(entry.body_block)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_manifest_is_taken_as_its_vector_says(vector: dict[str, Any]) -> None:
    blocks = [b"".join(bytes.fromhex(line.partition("#")[0]) for line in vector[name]) for name in ("entry", "body")]
    entry = open_entry(*blocks)
    if vector["expect"] == "accepted":
        assert (str(entry.cid), str(entry.body_cid)) == (vector["cid"], vector["body_cid"])
        describe(entry)
        return
    with pytest.raises(Remote) as refusal:
        describe(entry)
    assert refusal.value.code == vector["expect"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"surprise": 1},
        {"name": ""},
        {"name": "a/b"},
        {"name": "a\n"},
        {"version": True},
        {"version": 1 << 31},
        {"n_bytes": -1},
        {"n_bytes": wire.MAX_ARTIFACT_BYTES + 1},
        {"files": "text"},
        {"parents": [{"entry": Cid.of(b"x", DAG_CBOR)}]},
        {"parents": [{"entry": 5, "role": "data"}]},
        {"capabilities": ["UPPER"]},
        {"capabilities": ["c"] * (wire.MAX_CAPABILITIES + 1)},
        {"tags": ["t"] * 17},
        {"metrics": {f"m{n}": 1.0 for n in range(33)}},
        {"facts": {"k": [1]}},
        {"description": "x" * (wire.MAX_DESCRIPTION_CHARS + 1)},
        {"licence": "l" * 129},
        {"audience": "nobody"},
        {"created_unix_s": -1},
        {"base": None},
    ],
)
def test_a_manifest_outside_its_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="not the manifest of a dataset"):
        open_artifact(entry_of(dataset(), **change))
    with pytest.raises(Malformed):
        check_artifact(dataset(name="a/b"))


def test_a_manifest_fits_its_entry_and_nothing_else() -> None:
    with pytest.raises(Malformed, match="scope"):
        open_artifact(entry_of(dataset(), scope="other"))
    with pytest.raises(Malformed, match="describes none"):
        open_artifact(entry_of(dataset(), kind="collection"))
    with pytest.raises(Malformed, match="parents"):
        open_artifact(make_entry(ANN, "dataset", "verses", 1, [Cid.of(b"x", DAG_CBOR)], artifact_content(dataset())))
    big = dataset(facts={f"{n:0>100}": "\U0001f600" * 256 for n in range(32)}, description="\U0001f600" * 4096,
                  metrics={"\U0001f600" * 100 + str(n): 1.0 for n in range(32)})  # fmt: skip
    with pytest.raises(TooBig, match="manifest of"):
        describe(entry_of(big))


DATA, RUN = Cid.of(b"data"), Cid.of(b"run", DAG_CBOR)


def test_what_it_was_made_from_is_told_by_content_where_facts_name_it() -> None:
    facts = {
        "data": str(DATA),
        "data_name": "poems.txt",
        "checkpoint": str(RUN),
        "checkpoint_name": 7,
        "base": str(DATA),
    }
    told = (Origin(DATA, "data", "poems.txt"), Origin(RUN, "checkpoint", ""))
    base = Origin(BASE.fingerprint, "base", "tiny")
    assert describe(adapter_entry(manifest(training=facts))).origins == (base, *told)
    common = {"name": "x", "version": 1, "files": Cid.of(b"f"), "n_bytes": 5, "created_unix_s": 9}
    assert describe(entry_of(Checkpoint(**common, base=BASE, facts=facts))).origins == (base, *told)
    assert describe(entry_of(dataset(facts=facts))).origins == told
    merged = {"merged_base": str(BASE.fingerprint), "merged_base_name": "tiny", "merged_adapter": str(DATA)}
    model = Model(**common, base=BASE, derived_from=RUN, facts=merged)
    assert describe(entry_of(model)).origins == (
        Origin(RUN, "derived_from"),
        Origin(BASE.fingerprint, "merged_base", "tiny"),
        Origin(DATA, "merged_adapter"),
    )


@pytest.mark.parametrize("value", ["", "poems.txt", 7, True, 0.5, "bafy", "Qm" + "1" * 44, "b" * 256])
def test_a_fact_that_is_no_cid_tells_nothing(value: Any) -> None:
    assert describe(entry_of(dataset(facts={"data": value}))).origins == ()


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "poet",
        "version": 3,
        "base": BASE,
        "files": Cid.of(b"files"),
        "n_bytes": 1000,
        "n_params": 64,
        "rank": 8,
        "alpha": 16.0,
        "targets": ("q_proj",),
        "parent": Cid.of(b"p", DAG_CBOR),
        "tags": ("verse",),
        "metrics": {"loss": 1.5},
        "created_unix_s": 5,
    }
    return Manifest(**fields | changes)


def adapter_entry(told: Manifest, scope: str = str(BASE.fingerprint), prev: Any = None) -> Any:
    links = [told.parent] if prev is None and told.parent else prev or []
    return make_entry(ANN, "adapter", scope, 1, links, manifest_content(told))


def test_an_adapter_is_described_in_the_same_words() -> None:
    said = describe(adapter_entry(manifest()))
    assert (said.kind, said.name, said.base, said.version) == ("adapter", "poet", str(BASE.fingerprint), 3)
    assert said.parents == (Parent(entry=Cid.of(b"p", DAG_CBOR), role="previous"),)
    assert said.tags == said.capabilities == ("verse",)
    assert describe(adapter_entry(manifest(parent=None))).parents == ()
    assert said.origins == (Origin(BASE.fingerprint, "base", "tiny"),)
    with pytest.raises(Malformed, match="scope"):
        describe(adapter_entry(manifest(), scope="other"))
    with pytest.raises(Malformed, match="parent"):
        describe(adapter_entry(manifest(), prev=[Cid.of(b"q", DAG_CBOR)]))
    with pytest.raises(Malformed, match="not the manifest"):
        describe(make_entry(ANN, "adapter", "x", 1, [], {"name": "poet"}))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | texts | st.binary(max_size=8) | entries,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted({*wire.KINDS, "adapter", "note"})), st.dictionaries(st.sampled_from(
    [*Checkpoint.__struct_fields__, "x"]), values, max_size=20))  # fmt: skip
def test_whatever_content_is_signed_only_typed_errors_come(kind: str, changes: dict[str, Any]) -> None:
    content = artifact_content(dataset()) | changes
    with suppress(Remote):
        describe(make_entry(ANN, kind, "verses", 1, [], content))
