"""Write the vectors of envelopes, entries and manifests: `python -m tests.vectors.make_signed`, from the root.

Each vector is bytes, as annotated hex, and what a reader makes of them: `accepted`, or the code of its refusal. Keys,
clocks and contents are fixed, so that the files change only when the formats do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2

from protocols import cose
from protocols.adapters import Base
from protocols.artifacts import Artifact, Checkpoint, Dataset, Model, Parent, artifact_content
from protocols.entry import MAX_PREV, Entry, external_aad, make_entry
from protocols.envelope import MAX_SKEW_S, MAX_TTL_S, Purpose
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity, PeerId

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
NOW = 1_700_000_000
TOPIC = Purpose(protocol="/covey/sample/1.0.0", topic="/covey/samples/1/scope")
REQUEST = Purpose(protocol="/covey/sample/1.0.0", recipient=BOB.peer_id)
GROUP_ORDER = (1 << 252) + 27742317777372353535851937790883648493
LOW_ORDER_POINT = b"\1" + bytes(31)

_KINDS = ("unsigned", "negative", "bytes", "text", "array", "map", "tag", "simple")

Vector = dict[str, Any]


def annotate(data: bytes) -> list[str]:
    """One line for each CBOR item, indented: its hex, then what it is. What does not parse stands on the last line."""
    lines: list[str] = []
    try:
        at = _annotate_item(data, 0, 0, lines)
    except (IndexError, ValueError):
        at = sum(len(bytes.fromhex(line.partition("#")[0])) for line in lines)
    if at < len(data):
        lines.append(f"{data[at:].hex()}  # not part of a whole item")
    return lines


def _annotate_item(data: bytes, at: int, depth: int, lines: list[str]) -> int:
    kind, info = data[at] >> 5, data[at] & 0x1F
    width = {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0)
    if info > 27:
        raise ValueError("indefinite")
    argument = int.from_bytes(data[at + 1 : at + 1 + width]) if width else info
    end = at + 1 + width
    head, content = data[at:end], data[end : end + argument] if kind in (2, 3) else b""
    if kind in (2, 3) and len(content) < argument:
        raise IndexError
    pad = "  " * depth
    if kind == 2 and content and content[0] >> 5 == 5 and not _is_broken(content):
        lines.append(f"{pad}{head.hex()}  # bytes[{argument}], holding CBOR")
        return _annotate_item(content, 0, depth + 1, lines) + end
    meaning = {0: str(argument), 1: str(-1 - argument), 3: repr(content.decode()) if kind == 3 else ""}.get(
        kind, argument
    )
    lines.append(f"{pad}{(head + content).hex()}  # {_KINDS[kind]} {meaning}")
    end += len(content)
    for _ in range({4: argument, 5: 2 * argument, 6: 1}.get(kind, 0)):
        end = _annotate_item(data, end, depth + 1, lines)
    return end


def _is_broken(data: bytes) -> bool:
    try:
        return _annotate_item(data, 0, 0, []) != len(data)
    except (IndexError, ValueError):
        return True


def payload(**changes: object) -> dict[str, Any]:
    """A payload with a sample message in it."""
    body = {"type": "sample", "text": "hello", "about": bytes(Cid.of(b"block"))}
    return {"body": body, "sequence": 7, "issued": NOW, "expires": NOW + 600} | changes


def sealed(payload_bytes: bytes, purpose: Purpose = TOPIC, author: Identity = ALICE) -> bytes:
    """An envelope around any bytes, truly signed."""
    return cose.sign(author, payload_bytes, purpose.external_aad)


def sealed_by_hand(protected: bytes, unprotected: object, body: object, *, tag: int | None = 18) -> bytes:
    """Any COSE_Sign1, truly signed."""
    signature = ALICE.sign(cbor2.dumps(["Signature1", protected, TOPIC.external_aad, body or b""]))
    value = [protected, unprotected, body, signature]
    return cbor2.dumps(value if tag is None else cbor2.CBORTag(tag, value))


def canonical(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def envelopes() -> Iterator[Vector]:
    """Live messages."""
    plain = canonical(payload())
    good = sealed(plain)

    def vector(name: str, code: str, data: bytes, purpose: Purpose = TOPIC, unix_s: int = NOW) -> Vector:
        aad = {"external_aad": purpose.external_aad.hex()}
        texts = {"protocol": purpose.protocol, "topic": purpose.topic}
        names = {"recipient": purpose.recipient, "experiment": purpose.experiment}
        shown = texts | {key: str(value) if value else None for key, value in names.items()} | aad
        return {"name": name, "expect": code, "purpose": shown, "unix_s": unix_s, "envelope": annotate(data)}

    yield vector("a message on a topic", "accepted", good)
    yield vector("a request to a recipient", "accepted", sealed(plain, REQUEST), REQUEST)
    whole = Purpose(protocol="/p/1.0.0", topic="t", recipient=BOB.peer_id, experiment=Cid.of(b"plan", DAG_CBOR))
    yield vector("a purpose with all fields", "accepted", sealed(plain, whole), whole)
    last = canonical(payload(sequence=(1 << 63) - 1, expires=NOW + MAX_TTL_S))
    yield vector("the greatest sequence and time to live", "accepted", sealed(last))
    yield vector("in its last second", "accepted", good, unix_s=NOW + 599)
    yield vector("from a clock that is ahead by the limit", "accepted", good, unix_s=NOW - MAX_SKEW_S)
    for name, code, purpose, unix_s in (
        ("expired", "expired", TOPIC, NOW + 600),
        ("from the future", "expired", TOPIC, NOW - MAX_SKEW_S - 1),
        ("for another purpose", "forged", REQUEST, NOW),
    ):
        yield vector(name, code, good, purpose, unix_s)
    for name, code, data in _bad_envelopes(good, plain):
        yield vector(name, code, data)


def _bad_envelopes(good: bytes, plain: bytes) -> Iterator[tuple[str, str, bytes]]:
    kid = bytes(ALICE.peer_id)
    header = canonical({1: -8, 4: kid})
    yield "cut short", "malformed", good[:-1]
    yield "followed by a byte", "malformed", good + b"\0"
    yield "without its tag", "malformed", sealed_by_hand(header, {}, plain, tag=None)
    yield "with the tag of COSE_Sign", "malformed", sealed_by_hand(header, {}, plain, tag=98)
    yield "with another algorithm", "malformed", sealed_by_hand(canonical({1: -7, 4: kid}), {}, plain)
    yield "without a key id", "malformed", sealed_by_hand(canonical({1: -8}), {}, plain)
    yield "with a further protected header", "malformed", sealed_by_hand(canonical({1: -8, 3: 60, 4: kid}), {}, plain)
    yield "with its header in another order", "malformed", sealed_by_hand(cbor2.dumps({4: kid, 1: -8}), {}, plain)
    yield "with an unprotected header", "malformed", sealed_by_hand(header, {99: 1}, plain)
    yield "with its payload detached", "malformed", sealed_by_hand(header, {}, None)
    yield "with a bit of the payload changed", "forged", good.replace(b"hello", b"hallo")
    yield "with another author's name", "forged", good.replace(kid, BOB.peer_id)
    yield "with a bit of the signature changed", "forged", good[:-1] + bytes([good[-1] ^ 1])
    malleated = int.from_bytes(good[-32:], "little") + GROUP_ORDER
    yield "with the group's order added to S", "forged", good[:-32] + malleated.to_bytes(32, "little")
    low_order = good[:-64].replace(kid, PeerId.of(LOW_ORDER_POINT)) + LOW_ORDER_POINT + bytes(32)
    yield "by a key of small order, which signs everything", "forged", low_order
    yield from (
        (f"truly signed, with {name}", "malformed", sealed(data))
        for name, data in {
            "an unknown field": canonical(payload(extra=1)),
            "a field missing": canonical({key: value for key, value in payload().items() if key != "sequence"}),
            "sequence 0": canonical(payload(sequence=0)),
            "a sequence of 2^63": canonical(payload(sequence=1 << 63)),
            "a sequence of 1.0": canonical(payload(sequence=1.0)),
            "no time to live": canonical(payload(expires=NOW)),
            "too long a time to live": canonical(payload(expires=NOW + MAX_TTL_S + 1)),
            "another kind of message": canonical(payload(body={"type": "other"})),
            "a default left out": canonical(payload(body={"type": "sample", "text": "hello"})),
            "text for bytes": canonical(payload(body=payload()["body"] | {"about": "bafy"})),
            "keys out of order": cbor2.dumps(payload()),
            "a key twice": b"\xa5" + canonical({"sequence": 7})[1:] + plain[1:],
            "a number in a longer form": plain.replace(canonical({"sequence": 7})[1:], b"\x68sequence\x18\x07"),
            "a length in a longer form": plain.replace(b"\x65hello", b"\x78\x05hello"),
            "an indefinite length": b"\xbf" + plain[1:] + b"\xff",
            "a key that is not text": canonical(payload(body=payload()["body"] | {1: 1})),
            "a tag": b"\xd9\xd9\xf7" + plain,
            "text that is not UTF-8": plain.replace(b"hello", b"hell\xff"),
            "a byte behind it": plain + b"\0",
            "nesting without end": b"\x81" * 40 + b"\x80",
        }.items()
    )


def entries() -> Iterator[Vector]:
    """History."""
    first = make_entry(ALICE, "note", "garden", 0, [], {"text": "hello"})
    second = make_entry(ALICE, "note", "garden", 1, [first.cid], {"about": Cid.of(b"raw")}, BOB.peer_id)

    def vector(name: str, code: str, block: bytes, body: bytes) -> Vector:
        cids = {"cid": str(Cid.of(block, DAG_CBOR)), "body_cid": str(Cid.of(body, DAG_CBOR))}
        return {"name": name, "expect": code, **cids, "entry": annotate(block), "body": annotate(body)}

    yield vector("the first entry of a scope", "accepted", first.block, first.body_block)
    yield vector("an entry with a link before it and a recipient", "accepted", second.block, second.body_block)
    for name, code, block, body in _bad_entries(first, second):
        yield vector(name, code, block, body)


def entry_blocks(body: bytes, sig: object) -> tuple[bytes, bytes]:
    return dag_cbor.encode({"body": Cid.of(body, DAG_CBOR), "sig": sig}), body


def signed_body(
    value: object, author: Identity = ALICE, kind: str = "note", scope: str = "garden"
) -> tuple[bytes, bytes]:
    """The blocks of an entry with any body, truly signed."""
    body = dag_cbor.encode(value)
    return entry_blocks(body, cose.sign_detached(author, body, external_aad(kind, scope)))


def _bad_entries(first: Entry, second: Entry) -> Iterator[tuple[str, str, bytes, bytes]]:
    body: dict[str, Any] = dag_cbor.decode(second.body_block)
    sig: bytes = dag_cbor.decode(second.block)["sig"]
    protected, unprotected, _, signature = cbor2.loads(sig)
    yield "with the body of another", "malformed", second.block, first.body_block
    yield "the entry cut short", "malformed", second.block[:-1], second.body_block
    yield "the entry followed by a byte", "malformed", second.block + b"\0", second.body_block
    yield "the body followed by a byte", "malformed", *entry_blocks(second.body_block + b"\0", sig)
    yield "with the signature of another", "forged", *entry_blocks(first.body_block, sig)
    yield "signed for another kind", "forged", *signed_body(body, kind="task")
    yield "signed for another scope", "forged", *signed_body(body, scope="cellar")
    yield "signed by another than its author", "malformed", *signed_body(body, author=BOB)
    tagged = cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, None, signature]))
    yield "with a tagged COSE_Sign1", "malformed", *entry_blocks(second.body_block, tagged)
    attached = cbor2.dumps([protected, unprotected, b"", signature])
    yield "with the payload attached", "malformed", *entry_blocks(second.body_block, attached)
    header = cbor2.dumps([protected, {99: 1}, None, signature])
    yield "with an unprotected header", "malformed", *entry_blocks(second.body_block, header)
    raw_link = dag_cbor.encode({"body": Cid.of(second.body_block), "sig": sig})
    yield "linking to its body as raw", "malformed", raw_link, second.body_block
    yield (
        "with a further field in the entry",
        "malformed",
        dag_cbor.encode({"body": second.body_cid, "sig": sig, "x": 1}),
        second.body_block,
    )
    unsorted = cbor2.dumps(
        {"kind": "note", "scope": "garden", "prev": [], "author": bytes(ALICE.peer_id), "sequence": 0}
    )
    true_sig = cose.sign_detached(ALICE, unsorted, external_aad("note", "garden"))
    yield "truly signed, with keys out of order", "malformed", *entry_blocks(unsorted, true_sig)
    many = sorted(Cid.of(bytes([number]), DAG_CBOR) for number in range(MAX_PREV + 1))
    wrong: dict[str, dict[str, Any]] = {
        "a negative sequence": {"sequence": -1},
        "links out of order": {"prev": sorted([first.cid, first.body_cid], reverse=True)},
        "a link twice": {"prev": [first.cid, first.cid]},
        "too many links": {"prev": many},
        "a link to raw bytes": {"prev": [Cid.of(b"raw")]},
        "a recipient that is null": {"recipient": None},
    }
    for name, changes in wrong.items():
        yield f"truly signed, with {name}", "malformed", *signed_body(body | changes)
    del body["prev"]
    yield "truly signed, without prev", "malformed", *signed_body(body)


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


def artifacts() -> Iterator[Vector]:
    """Manifests of models, datasets and checkpoints."""
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
        yield refused(f"a checkpoint with {name}", *signed_body(body | changes, kind="checkpoint", scope="run"))
    del body["licence"]
    yield refused("a checkpoint without a field", *signed_body(body, kind="checkpoint", scope="run"))
    yield refused("a kind that describes no artifact", *signed_body(body | {"kind": "note"}, kind="note", scope="run"))
    step = dag_cbor.decode(entry_of(DATASET).body_block) | {"step": 1}
    yield refused("a dataset with a step", *signed_body(step, kind="dataset", scope="verses"))


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
    """Write every file."""
    for name, about, vectors in (
        ("envelope", "Live messages. `sample` has the fields text (text) and about (CID or null).", envelopes()),
        ("entry", "History entries: an entry block and its body block.", entries()),
        ("artifact", "Manifests of models, datasets and checkpoints: an entry and its body block.", artifacts()),
    ):
        signers = {"alice": str(ALICE.peer_id), "bob": str(BOB.peer_id)}
        document = {"about": about, "peers": signers, "vectors": list(vectors)}
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (Path(__file__).parent / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
