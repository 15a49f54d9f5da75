"""The public codec fixtures, read in place: every pair of codecs known here, and every negative one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storage.cid import Cid
from storage.codecs import CODECS, Codec, codec_of, dag_json, dag_pb, links
from storage.errors import StorageError

FIXTURES = Path(os.environ.get("COVEY_FIXTURES", "")) / "ipld-codec-fixtures"

NAMED = {codec.name: codec for codec in CODECS.values()}

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


def value_of(codec: Codec, data: bytes) -> Any:
    decoded = codec.decode(data)
    return dag_pb.to_value(decoded) if codec.name == "dag-pb" else decoded


def bytes_of(codec: Codec, value: Any) -> bytes:
    return codec.encode(dag_pb.from_value(value) if codec.name == "dag-pb" else value)


def test_every_block_is_read_and_written_to_the_same_bytes() -> None:
    found = blocks()
    assert len(found) == 273
    for cid, data in found:
        codec = codec_of(cid)
        assert cid.matches(data)
        assert codec.encode(codec.decode(data)) == data, cid
        assert isinstance(links(cid, data), list)


def test_every_value_goes_from_every_codec_into_every_other_to_the_byte() -> None:
    n_pairs = 0
    for folder in sorted((FIXTURES / "fixtures").glob("*/")):
        forms = [(NAMED[path.suffix[1:]], path.stem, path.read_bytes()) for path in folder.glob("*.*")]
        for source, cid, data in forms:
            assert str(Cid.of(data, source.code)) == cid
            for target, _, expected in forms:
                assert bytes_of(target, value_of(source, data)) == expected, (folder.name, source.name, target.name)
                n_pairs += 1
    assert n_pairs == 111 * 4 + 17 * 9


@pytest.mark.parametrize("codec", ["dag-cbor", "dag-json", "dag-pb"])
def test_every_negative_block_is_refused(codec: str) -> None:
    decode = next(known.decode for known in CODECS.values() if known.name == codec)
    found = cases(f"{codec}/decode")
    assert found
    for case in found:
        with pytest.raises(StorageError):
            decode(bytes.fromhex(case["hex"]))


def test_every_value_that_is_no_dag_pb_node_is_refused() -> None:
    found = cases("dag-pb/encode")
    assert found
    for case in found:
        with pytest.raises(StorageError):
            assert bytes_of(NAMED["dag-pb"], dag_json.read(json.dumps(case["dag-json"]).encode())) is None, case["name"]
