import json
from pathlib import Path
from typing import Any

import pytest

from protocols import envelope
from protocols.entry import open_entry
from protocols.envelope import Purpose
from protocols.errors import Remote
from protocols.message import Message
from storage.cid import Cid
from storage.keys import PeerId

VECTORS = Path(__file__).parents[1] / "vectors"


class Sample(Message, frozen=True, tag="sample"):
    text: str
    about: Cid | None = None


def vectors(name: str) -> list[Any]:
    document = json.loads((VECTORS / f"{name}.json").read_text())
    return [pytest.param(vector, id=vector["name"]) for vector in document["vectors"]]


def read(annotated: list[str]) -> bytes:
    return b"".join(bytes.fromhex(line.partition("#")[0]) for line in annotated)


@pytest.mark.parametrize("vector", vectors("envelope"))
def test_an_envelope_is_taken_as_its_vector_says(vector: dict[str, Any]) -> None:
    said = vector["purpose"]
    purpose = Purpose(
        protocol=said["protocol"],
        topic=said["topic"],
        recipient=said["recipient"] and PeerId.parse(said["recipient"]),
        experiment=said["experiment"] and Cid.parse(said["experiment"]),
    )
    assert purpose.external_aad.hex() == said["external_aad"]
    data = read(vector["envelope"])
    if vector["expect"] == "accepted":
        signed = envelope.open(data, purpose, Sample, unix_s=vector["unix_s"])
        assert signed.body == Sample(text="hello", about=Cid.of(b"block"))
    else:
        with pytest.raises(Remote) as refusal:
            envelope.open(data, purpose, Sample, unix_s=vector["unix_s"])
        assert refusal.value.code == vector["expect"]


@pytest.mark.parametrize("vector", vectors("entry"))
def test_an_entry_is_taken_as_its_vector_says(vector: dict[str, Any]) -> None:
    blocks = read(vector["entry"]), read(vector["body"])
    if vector["expect"] == "accepted":
        entry = open_entry(*blocks)
        assert (str(entry.cid), str(entry.body_cid)) == (vector["cid"], vector["body_cid"])
    else:
        with pytest.raises(Remote) as refusal:
            open_entry(*blocks)
        assert refusal.value.code == vector["expect"]
