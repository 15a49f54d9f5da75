"""Write the vectors of artifacts' manifests: `python -m tests.vectors.make_artifacts`, from the repository's root.

Each is an entry, truly signed, as annotated hex, and what a reader makes of it: what it describes, or `malformed`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocols.adapters import Base
from protocols.artifacts import Artifact, Checkpoint, Dataset, Model, Parent, artifact_content
from protocols.entry import Entry, make_entry
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from tests.vectors.make_signed import ALICE, Vector, annotate, signed_body

NOW = 1_700_000_000
FILES = Cid.of(b"files")
BASE = Base(fingerprint=Cid.of(b"base", DAG_CBOR), name="tiny", architecture="LlamaForCausalLM")
COMMON: dict[str, Any] = {"files": FILES, "n_bytes": 1000, "created_unix_s": NOW}
DATASET = Dataset(
    name="verses",
    version=1,
    capabilities=("training",),
    tags=("english", "text"),
    metrics={"perplexity": 12.5},
    facts={"rows": 79, "shuffled": True, "language": "ang", "split": 0.9},
    description="Old English poems",
    licence="CC0-1.0",
    audience="public",
    **COMMON,
)
MODEL = Model(name="tiny", version=2, base=BASE, derived_from=Cid.of(b"source", DAG_CBOR), **COMMON)


def entry_of(artifact: Artifact, **changes: Any) -> Entry:
    """The signed entry of a manifest; `changes` are written over what it says."""
    content = artifact_content(artifact) | changes
    prev = [parent.entry for parent in artifact.parents]
    return make_entry(ALICE, artifact.kind, artifact.name, 1, prev, content)


def checkpoint() -> Checkpoint:
    """One that was made from the others."""
    parents = (
        Parent(entry=entry_of(DATASET).cid, role="data"),
        Parent(entry=entry_of(MODEL).cid, role="base"),
    )
    return Checkpoint(name="run", version=7, base=BASE, step=300, parents=parents, **COMMON)


def vectors() -> Iterator[Vector]:
    """Every vector."""
    run = checkpoint()
    for artifact in (DATASET, MODEL, run):
        yield accepted(f"a {artifact.kind}", entry_of(artifact))
    body: dict[str, Any] = dag_cbor.decode(entry_of(run).body_block)
    for name, changes in {
        "a format of the future": {"format": 2},
        "an unknown field": {"surprise": 1},
        "a name that is a path": {"name": "../run"},
        "a version of 0": {"version": 0},
        "files that are no link": {"files": bytes(FILES)},
        "a parent that is no link before it": {"parents": body["parents"][:1]},
        "a link before it that is no parent": {"prev": body["prev"][:1]},
        "a role in capitals": {"parents": [parent | {"role": "DATA"} for parent in body["parents"]]},
        "a metric that is text": {"metrics": {"loss": "low"}},
        "a negative step": {"step": -1},
        "another name than its scope": {"name": "walk"},
        "more tags than there may be": {"tags": [f"t{number}" for number in range(17)]},
    }.items():
        yield refused(f"a checkpoint with {name}", *signed(body | changes))
    del body["licence"]
    yield refused("a checkpoint without a field", *signed(body))
    yield refused("a kind that describes no artifact", *signed(body | {"kind": "note"}, kind="note"))
    step = dag_cbor.decode(entry_of(DATASET).body_block) | {"step": 1}
    yield refused("a dataset with a step", *signed(step, kind="dataset", scope="verses"))


def signed(body: Any, kind: str = "checkpoint", scope: str = "run") -> tuple[bytes, bytes]:
    return signed_body(body, kind=kind, scope=scope)


def accepted(name: str, entry: Entry) -> Vector:
    cids = {"cid": str(entry.cid), "body_cid": str(entry.body_cid)}
    return {
        "name": name,
        "expect": "accepted",
        **cids,
        "entry": annotate(entry.block),
        "body": annotate(entry.body_block),
    }


def refused(name: str, block: bytes, body: bytes) -> Vector:
    return {"name": name, "expect": "malformed", "entry": annotate(block), "body": annotate(body)}


def main() -> None:
    """Write the file."""
    about = "Manifests of models, datasets and checkpoints: an entry block and its body block, signed by alice."
    document = {"about": about, "peers": {"alice": str(ALICE.peer_id)}, "vectors": list(vectors())}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (Path(__file__).parent / "artifact.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
