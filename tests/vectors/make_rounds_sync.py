"""Write the vectors of the questions between members: `python -m tests.vectors.make_rounds_sync`, from the root."""

import json
from pathlib import Path
from typing import Any

from protocols.message import canonical, encode
from protocols.rounds_sync import MAX_ASK_BYTES, Ask, AskMembers, AskPlan
from storage.cid import DAG_CBOR, Cid
from storage.keys import Identity
from tests.vectors.make_signed import annotate

ANN, BOB = sorted(Identity(seed * 32).peer_id for seed in (b"a", b"b"))
EXPERIMENT = Cid.of(b"plan", DAG_CBOR)
FULL = Ask(
    experiment=EXPERIMENT,
    authors=(ANN, BOB),
    heights=(3, 65536),
    latest=(bytes(16), b"\xff" * 16),
    forks=(BOB,),
    wait_s=2.5,
)


def vector(name: str, data: bytes, expect: str = "accepted") -> dict[str, Any]:
    return {"name": name, "bytes": annotate(data), "expect": expect}


def vectors() -> list[dict[str, Any]]:
    plain = {"type": "ask_rounds", "experiment": bytes(EXPERIMENT), "authors": [], "heights": [], "latest": []}
    plain |= {"forks": [], "wait_s": 0.0}
    one = {"authors": [bytes(ANN)], "heights": [1], "latest": [bytes(16)]}
    bad = {
        "a wait that is too long": {"wait_s": 11.0},
        "a wait that is a whole number": {"wait_s": 0},
        "a height without its author": {"heights": [1]},
        "a height of zero": one | {"heights": [0]},
        "a height over the limit": one | {"heights": [65537]},
        "a hash that is too short": one | {"latest": [bytes(15)]},
        "authors out of order": {
            "authors": [bytes(BOB), bytes(ANN)], "heights": [1, 1], "latest": [bytes(16), bytes(16)]
        },
        "an author twice": {"authors": [bytes(ANN)] * 2, "heights": [1, 1], "latest": [bytes(16)] * 2},
        "a fork twice": {"forks": [bytes(ANN)] * 2},
        "an author that is no peer": one | {"authors": [b"\0\1"]},
        "an experiment that is no CID": {"experiment": b"\1"},
        "a field that is not known": {"more": True},
        "another type": {"type": "told"},
    }  # fmt: skip
    return [
        vector("ask for everything", encode(Ask(experiment=EXPERIMENT), MAX_ASK_BYTES)),
        vector("ask for what is lacking", encode(FULL, MAX_ASK_BYTES)),
        vector("ask for the plan", encode(AskPlan(experiment=EXPERIMENT), MAX_ASK_BYTES)),
        vector("ask for members", encode(AskMembers(experiment=EXPERIMENT), MAX_ASK_BYTES)),
        *(vector(name, canonical(plain | change), "malformed") for name, change in bad.items()),
        vector("a byte behind it", canonical(plain) + b"\0", "malformed"),
        vector("cut short", canonical(plain)[:-1], "malformed"),
    ]


def main() -> None:
    path = Path(__file__).with_name("rounds_sync.json")
    path.write_text(json.dumps({"vectors": vectors()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
