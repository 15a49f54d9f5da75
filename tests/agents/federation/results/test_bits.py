"""One closed set has one result, through the round's own code: in every LoRA way, and of every buffer."""

import json
import os
import random
from pathlib import Path

import pytest

from tests.agents.federation.bits import ROUNDS, Round, digests
from tests.agents.federation.lora_examples import RANK

ORDERS = 200
VECTORS = Path(__file__).parents[3] / "vectors" / "aggregation.json"


@pytest.mark.parametrize("name", ROUNDS)
def test_no_order_of_arrival_and_no_number_of_threads_changes_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # what a power cut leaves is not asked here
    # Singular values cost with the cube of the ranks: one of each client's is enough to come in any order.
    made = Round(tmp_path / "round", name, rank=1 if name == "flexlora" else RANK)
    expected, chance = made.digest(made.updates), random.Random(name)
    for turn in range(ORDERS):
        chance.shuffle(made.updates)
        assert made.digest(made.updates, n_threads=1 + turn % 2) == expected


def test_rounds_are_those_of_every_other_machine() -> None:
    known = json.loads(VECTORS.read_text())
    found = digests()
    assert found == {name: known[name] for name in found}
