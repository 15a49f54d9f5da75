"""The public codec fixtures, read in place: every pair of codecs known here, and every negative one."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from storage.cid import Cid
from storage.codecs import CODECS, codec_of, dag_cbor, dag_pb, links
from storage.codecs.dag_pb import PbLink, PbNode
from storage.errors import StorageError

FIXTURES = Path(os.environ.get("COVEY_FIXTURES", "")) / "ipld-codec-fixtures"

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir() or "COVEY_FIXTURES" not in os.environ, reason="COVEY_FIXTURES names no folder of fixtures"
)


def cases(folder: str) -> list[dict[str, Any]]:
    paths = sorted((FIXTURES / "negative-fixtures" / folder).glob("*.json"))
    return [case for path in paths for case in json.loads(path.read_text())]


def blocks() -> list[tuple[Cid, bytes]]:
    paths = sorted((FIXTURES / "fixtures").glob("*/*.*"))
    found = [(Cid.parse(path.name.split(".")[0]), path.read_bytes()) for path in paths]
    return [(cid, data) for cid, data in found if cid.codec in CODECS]


def test_every_block_is_read_and_written_to_the_same_bytes() -> None:
    found = blocks()
    assert len(found) >= 145
    for cid, data in found:
        codec = codec_of(cid)
        assert cid.matches(data)
        assert codec.encode(codec.decode(data)) == data, cid
        assert isinstance(links(cid, data), list)


def test_dag_pb_and_dag_cbor_of_one_value_agree() -> None:
    n_pairs = 0
    for path in sorted((FIXTURES / "fixtures").glob("*/*.dag-pb")):
        [other] = path.parent.glob("*.dag-cbor")
        value = dag_cbor.decode(other.read_bytes())
        assert dag_pb.decode(path.read_bytes()) == from_data_model(value)
        assert dag_pb.encode(from_data_model(value)) == path.read_bytes()
        n_pairs += 1
    assert n_pairs == 17


def from_data_model(value: Any) -> PbNode:
    """The node that a value in the data model stands for, if it has the form of one."""
    if not isinstance(value, dict) or not set(value) <= {"Data", "Links"} or "Links" not in value:
        return value
    made = []
    for link in value["Links"] if isinstance(value["Links"], list) else [None]:
        if not isinstance(link, dict) or not set(link) <= {"Hash", "Name", "Tsize"} or None in link.values():
            return value
        made.append(PbLink(link.get("Hash"), link.get("Name"), link.get("Tsize")))
    return value if "Data" in value and value["Data"] is None else PbNode(value.get("Data"), tuple(made))


@pytest.mark.parametrize("codec", ["dag-cbor", "dag-pb"])
def test_every_negative_block_is_refused(codec: str) -> None:
    decode = next(known.decode for known in CODECS.values() if known.name == codec)
    found = cases(f"{codec}/decode")
    assert found
    for case in found:
        with pytest.raises(StorageError):
            decode(bytes.fromhex(case["hex"]))


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"/"}:
            inner = value["/"]
            if isinstance(inner, str):
                return Cid.parse(inner)
            return base64.b64decode(inner["bytes"] + "=" * (-len(inner["bytes"]) % 4))
        return {key: from_json(below) for key, below in value.items()}
    return [from_json(below) for below in value] if isinstance(value, list) else value


def test_every_value_that_is_no_dag_pb_node_is_refused() -> None:
    found = cases("dag-pb/encode")
    assert found
    for case in found:
        with pytest.raises(StorageError):
            assert dag_pb.encode(from_data_model(from_json(case["dag-json"]))) is None, case["name"]
