"""The conversations of tests/vectors/yamux.json, heard whole and byte by byte."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import Remote
from protocols.yamux.connection import Connection
from protocols.yamux.memory import Memory
from protocols.yamux.stream import Stream

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "yamux.json").read_text())


def new_connection(side: str) -> Connection:
    """A side that has said its first ping."""
    connection = Connection(side == "client", Memory(), 0.0)
    connection.tick(0.0)
    connection.take_messages(1, 0.0)
    return connection


def act(connection: Connection, step: dict[str, Any], n_at_a_time: int, known: dict[int, Stream]) -> None:
    data = bytes.fromhex(step.get("bytes", "")) + bytes(step.get("zeros", 0))
    match step["do"]:
        case "hear":
            for at in range(0, len(data), n_at_a_time):
                connection.receive(data[at : at + n_at_a_time], 0.0)
        case "open":
            assert connection.open(0.0).number == step["stream"]
        case "go_away":
            connection.go_away()
        case "write":
            connection.write(known[step["stream"]], data)
        case "read":
            wanted = bytes.fromhex(step.get("gives", "")) + bytes(step.get("gives_zeros", 0))
            assert connection.read(known[step["stream"]], 1 << 20, 0.0) == wanted
        case "close":
            connection.close(known[step["stream"]], 0.0)
        case "accept" | "finish" | "reset" as verb:
            getattr(connection, verb)(known[step["stream"]])
        case other:
            raise AssertionError(other)
    known.update(connection.streams)


def check(vector: dict[str, Any], n_at_a_time: int) -> None:
    """A side does what the vector tells, and sends what it says."""
    connection = new_connection(vector["side"])
    known: dict[int, Stream] = {}
    for step in vector["steps"]:
        if "error" in step:
            with pytest.raises(Remote) as caught:
                act(connection, step, n_at_a_time, known)
            assert caught.value.code == step["error"]
        else:
            act(connection, step, n_at_a_time, known)
        sent = b"".join(connection.take_messages(100, 0.0)[0])
        assert len(sent) == step.get("sends_bytes", len(sent))
        assert sent.hex() == step.get("sends", sent.hex())


@pytest.mark.parametrize("n_at_a_time", [1 << 20, 1, 7])
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_side_sends_what_the_vector_says(vector: dict[str, Any], n_at_a_time: int) -> None:
    check(vector, n_at_a_time)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_vector_changed_by_one_bit_is_noticed(vector: dict[str, Any]) -> None:
    """The vectors bind: no other bytes than theirs pass."""
    changed = copy.deepcopy(vector)
    [*_, step] = [step for step in changed["steps"] if step.get("sends")]
    step["sends"] = f"{int(step['sends'], 16) ^ 1:0{len(step['sends'])}x}"
    with pytest.raises(AssertionError):
        check(changed, 1 << 20)
