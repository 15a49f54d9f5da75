"""Write the vectors of workspaces: `python -m tests.vectors.make_workspaces`, from the repository's root.

`entry` is the two blocks of an entry, and what a member makes of them: `accepted`, or the code of its
refusal. `question` and `news` are messages without their frame; `wrap` and `box` are how keys and statements are
sealed, with counted bytes in the place of random ones, which nobody else may do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from protocols.entry import make_entry
from protocols.message import canonical, encode
from protocols.telling import Mark
from protocols.workspaces import announce, sync
from protocols.workspaces.entries import (
    Accept,
    Begin,
    Claim,
    Close,
    Commit,
    Drop,
    Endorse,
    Grant,
    Join,
    Leave,
    Propose,
    Put,
    Revoke,
    Root,
    Say,
    Statement,
    Vote,
    content_of,
    scope_of,
)
from protocols.workspaces.sealed import content_with, given, new_key, pad, seal
from protocols.workspaces.sync import Ask, AskContent, AskMembers, AskRoot, Known
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor
from storage.keys import Identity
from tests.vectors.make_signed import annotate

ANN, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
OPEN, PRIVATE = (Root(format=number, title="village", created_unix_s=1_800_000_000) for number in (1, 2))
ROOTS: Final = {
    root.format: make_entry(ANN, "workspace", "workspaces", 0, [], content_of(root)) for root in (OPEN, PRIVATE)
}
WORKSPACE, SEALED_WORKSPACE = ROOTS[1].body_cid, ROOTS[2].body_cid
LINK = Cid.of(b"\xa0", DAG_CBOR)
UNIX_S: Final = 1_800_000_000

STATEMENTS: Final[tuple[Statement, ...]] = (
    Grant(audience=BOB.peer_id, can=("read", "write"), keys=("*", "docs/*"), weight=2, proof=LINK, until_unix_s=UNIX_S),
    Join(),
    Leave(grants=(LINK,)),
    Revoke(grants=(LINK,), last=(LINK,), reason="gone"),
    Say(key="talk", text="hello"),
    Put(key="docs/a", value={"n": [1, None, "x"]}, link=LINK),
    Drop(key="docs/a"),
    Propose(key="a", text="which?", options=("x", "y"), rule="ranked", quorum=2, closers=(ANN.peer_id,)),
    Vote(proposal=LINK, ranking=(1, 0), veto=True),
    Close(proposal=LINK),
    Claim(task="runs/a", term=3),
    Endorse(claim=LINK),
    Begin(claim=LINK, step=1, attempt=2),
    Commit(claim=LINK, step=1, output=[1, 2], link=LINK),
    Accept(commit=LINK),
)  # fmt: skip
SECRET: Final = tuple(says for says in STATEMENTS if says.kind in ("say", "put", "propose", "commit"))

Vector = dict[str, Any]


def counted(start: int) -> Any:
    """Bytes that count up, instead of random ones."""
    at = start

    def entropy(n_bytes: int) -> bytes:
        nonlocal at
        at += 1
        return bytes((at + number) % 256 for number in range(n_bytes))

    return entropy


def _entry(
    name: str, kind: str, content: Any, expect: str = "accepted", *, private: bool = False, **more: Any
) -> Vector:
    workspace = SEALED_WORKSPACE if private else WORKSPACE
    entry = make_entry(
        ANN, kind, more.pop("scope", scope_of(workspace)), 1, [LINK], content, more.pop("recipient", None)
    )
    return {
        "kind": "entry", "name": name, "is_private": private, "expect": expect, "workspace": str(workspace),
        "cid": str(entry.cid), "body_cid": str(entry.body_cid),
        "entry": annotate(entry.block), "body": annotate(entry.body_block),
    }  # fmt: skip


def entries() -> Iterator[Vector]:
    """What stands in a workspace, and what does not."""
    for says in STATEMENTS:
        yield _entry(f"a {says.kind}", says.kind, content_of(says))
    say, put = content_of(Say(key="talk", text="hello")), content_of(Put(key="a", value=1))
    yield _entry("a say for one member", "say", say, recipient=BOB.peer_id)
    yield _entry("a put for one member", "put", put, "malformed", recipient=BOB.peer_id)
    yield _entry("an entry of another workspace", "say", say, "foreign", scope=scope_of(LINK))
    yield _entry("an entry of another scope", "say", say, "foreign", scope="rounds")
    yield _entry("a kind that is none", "wish", {}, "malformed")
    yield _entry("a field too many", "say", say | {"more": 1}, "malformed")
    yield _entry("a field too few", "say", {"key": "talk"}, "malformed")
    yield _entry("a key that is none", "drop", {"key": "a b"}, "malformed")
    grant = content_of(STATEMENTS[0])
    yield _entry("rights out of order", "grant", grant | {"can": ["write", "read"]}, "malformed")
    yield _entry("a pattern twice", "grant", grant | {"keys": ["a", "a"]}, "malformed")
    yield _entry("a weight over the limit", "grant", grant | {"weight": 1001}, "malformed")
    propose = content_of(STATEMENTS[7])
    yield _entry("one option", "propose", propose | {"options": ["x"]}, "malformed")
    yield _entry("a rule that is none", "propose", propose | {"rule": "loudest"}, "malformed")
    vote = content_of(STATEMENTS[8])
    yield _entry("an option twice", "vote", vote | {"ranking": [1, 1]}, "malformed")


def sealed_entries() -> Iterator[Vector]:
    """The same of a private one."""
    key = bytes(range(32))
    for says in SECRET:
        box = seal(says, SEALED_WORKSPACE, LINK, key, counted(0))
        yield _entry(f"a sealed {says.kind}", says.kind, content_with(says, box), private=True)
    rekey = new_key(SEALED_WORKSPACE, [ANN.peer_id, BOB.peer_id], counted(0))
    give = given(SEALED_WORKSPACE, BOB.peer_id, {LINK: key}, counted(0))
    for other in (rekey, give):
        yield _entry(f"a {other.kind}", other.kind, content_of(other), private=True)
        yield _entry(f"a {other.kind} where nothing is sealed", other.kind, content_of(other), "malformed")
    say = Say(key="talk", text="hello")
    content = content_with(say, seal(say, SEALED_WORKSPACE, LINK, key, counted(0)))
    yield _entry("a sealed say where nothing is sealed", "say", content, "malformed")
    yield _entry("a say in clear", "say", content_of(say), "malformed", private=True)
    for name, change in {
        "a text that shows beside the box": content | {"text": ""},
        "a box without its nonce": content | {"sealed": {"epoch": LINK, "box": bytes(80)}},
        "a nonce of 12 bytes": content | {"sealed": content["sealed"] | {"nonce": bytes(12)}},
        "a box that is shorter than any": content | {"sealed": content["sealed"] | {"box": bytes(79)}},
        "an epoch that is no link": content | {"sealed": content["sealed"] | {"epoch": bytes(36)}},
        "a field in the box's place that is not known": content | {"sealed": content["sealed"] | {"more": 1}},
    }.items():
        yield _entry(name, "say", change, "malformed", private=True)
    propose = content_with(SECRET[2], seal(SECRET[2], SEALED_WORKSPACE, LINK, key, counted(0)))
    for name, number in (("of one option", 1), ("of 17 options", 17), ("that hides how many options it has", None)):
        yield _entry(f"a sealed proposal {name}", "propose", propose | {"n_options": number}, "malformed", private=True)
    wraps = content_of(rekey)["wraps"]
    for name, other_wraps in (
        ("for nobody", []),
        ("for one twice", [wraps[0], wraps[0]]),
        ("out of order", wraps[::-1]),
    ):
        yield _entry(f"a rekey {name}", "rekey", content_of(rekey) | {"wraps": other_wraps}, "malformed", private=True)
    short = [[wraps[0][0], wraps[0][1][:-1]]]
    yield _entry("a wrap that is cut short", "rekey", content_of(rekey) | {"wraps": short}, "malformed", private=True)


def sealings() -> Iterator[Vector]:
    """How the bytes of a box and of a wrap come about."""
    rekey = new_key(SEALED_WORKSPACE, [ANN.peer_id, BOB.peer_id], counted(0))
    key = counted(0)(32)
    yield {
        "kind": "wrap", "name": "a key for two", "workspace": str(SEALED_WORKSPACE), "key": key.hex(),
        "commitment": rekey.commitment.hex(),
        "wraps": {str(peer): wrapped.hex() for peer, wrapped in rekey.wraps},
        "seeds": {str(one.peer_id): one.seed.hex() for one in (ANN, BOB)},
    }  # fmt: skip
    for says in SECRET:
        box = seal(says, SEALED_WORKSPACE, LINK, key, counted(9))
        content = content_of(says)
        fields = {name: content[name] for name in content if name not in content_with(says, box)}
        yield {
            "kind": "box", "name": f"a {says.kind}", "workspace": str(SEALED_WORKSPACE), "epoch": str(LINK),
            "key": key.hex(), "says": says.kind, "nonce": box.nonce.hex(),
            "content": annotate(dag_cbor.encode(content)), "plain": annotate(dag_cbor.encode(fields)),
            "padded": pad(dag_cbor.encode(fields)).hex(), "box": box.box.hex(),
        }  # fmt: skip


def messages() -> Iterator[Vector]:
    """Questions between members, and news."""
    low, high = sorted((ANN.peer_id, BOB.peer_id))
    known = Known({low: Mark(3, bytes(16)), high: Mark(1 << 20, b"\xff" * 16)}, (LINK,))
    for name, question in {
        "ask for everything": Ask(workspace=WORKSPACE),
        "ask for what is lacking": sync.question_of(WORKSPACE, known, 2.5),
        "ask for the root": AskRoot(workspace=WORKSPACE),
        "ask for members": AskMembers(workspace=WORKSPACE),
        "ask for content": AskContent(workspace=WORKSPACE, cid=LINK),
    }.items():
        yield _message("question", name, encode(question, sync.MAX_ASK_BYTES))
    plain = {"type": "ask_workspace", "workspace": bytes(WORKSPACE), "authors": [], "heights": [], "latest": []}
    plain |= {"heads": [], "wait_s": 0.0}
    one = {"authors": [bytes(low)], "heights": [1], "latest": [bytes(16)]}
    for name, change in {
        "a wait that is too long": {"wait_s": 21.0},
        "a wait that is a whole number": {"wait_s": 0},
        "a height without its author": {"heights": [1]},
        "a height of zero": one | {"heights": [0]},
        "a hash that is too short": one | {"latest": [bytes(15)]},
        "authors out of order": {"authors": [bytes(high), bytes(low)], "heights": [1, 1], "latest": [bytes(16)] * 2},
        "an author twice": {"authors": [bytes(low)] * 2, "heights": [1, 1], "latest": [bytes(16)] * 2},
        "an author that is no peer": one | {"authors": [b"\0\1"]},
        "a workspace that is no CID": {"workspace": b"\1"},
        "a field that is not known": {"more": True},
        "another type": {"type": "told"},
    }.items():
        yield _message("question", name, canonical(plain | change), "malformed")
    yield _message("question", "a byte behind it", canonical(plain) + b"\0", "malformed")
    yield _message("question", "cut short", canonical(plain)[:-1], "malformed")
    news = announce.seal_news(ANN, WORKSPACE, announce.News(heads=(LINK,)), lambda aad: 7, UNIX_S)
    yield _message("news", "news", news)
    for name, code, data in (
        ("news of another workspace", "forged",
         announce.seal_news(ANN, LINK, announce.News(heads=(LINK,)), lambda aad: 7, UNIX_S)),
        ("news that another than its sender signed", "forged",
         announce.seal_news(BOB, WORKSPACE, announce.News(heads=(LINK,)), lambda aad: 7, UNIX_S)),
        ("news whose time is over", "expired",
         announce.seal_news(ANN, WORKSPACE, announce.News(heads=(LINK,)), lambda aad: 7, UNIX_S - 100_000)),
        ("a byte that was changed", "forged", news[:-1] + bytes([news[-1] ^ 1])),
        ("a byte behind it", "malformed", news + b"\0"),
        ("news that are too long", "too_big", news + bytes(4097 - len(news))),
    ):  # fmt: skip
        yield _message("news", name, data, code)


def _message(kind: str, name: str, data: bytes, expect: str = "accepted") -> Vector:
    return {"kind": kind, "name": name, "bytes": annotate(data), "expect": expect}


def vectors() -> list[Vector]:
    """All of them."""
    roots = [
        {"kind": "root", "name": f"format {number}", "cid": str(root.body_cid), "entry": annotate(root.block),
         "body": annotate(root.body_block)}
        for number, root in ROOTS.items()
    ]  # fmt: skip
    return [*roots, *entries(), *sealed_entries(), *sealings(), *messages()]


def main() -> None:
    """Write the file beside this one."""
    path = Path(__file__).with_name("workspaces.json")
    path.write_text(json.dumps({"unix_s": UNIX_S, "sender": str(ANN.peer_id), "vectors": vectors()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
