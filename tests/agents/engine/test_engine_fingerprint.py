import hashlib
import json

import pytest

from agents.engine.fingerprint import SourceTensor, fingerprint, fingerprint_folder
from agents.errors import EngineFailed


def write(path, tensors):
    """A safetensors file, written by hand. `tensors`: name -> (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


EMBED = ("F32", [2, 1], bytes(range(8)))
NORM = ("BF16", [2], b"\1\2\3\4")


def test_the_files_do_not_matter_and_the_tensors_do(tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder in (one, two, other):
        folder.mkdir()
    write(one / "model.safetensors", {"embed": EMBED, "norm": NORM})
    write(two / "a.safetensors", {"norm": NORM})
    write(two / "b.safetensors", {"embed": EMBED})
    write(other / "model.safetensors", {"embed": EMBED, "norm": ("BF16", [2], b"\1\2\3\5")})
    assert fingerprint_folder(one) == fingerprint_folder(two)
    assert fingerprint_folder(one) != fingerprint_folder(other)


def test_the_fingerprint_is_what_it_was():
    tensor = SourceTensor("w", "F32", (1,), hashlib.sha256(b"\0\0\0\0").digest())
    # By hand: 81 84 61 "w" 63 "F32" 81 01 58 20 digest
    block = b"\x81\x84\x61w\x63F32\x81\x01\x58\x20" + tensor.sha256
    assert fingerprint([tensor]).digest == hashlib.sha256(block).digest()


def test_a_tied_head_counts_once_and_another_head_counts(tmp_path):
    hashed = hashlib.sha256(b"x").digest()
    embed = SourceTensor("model.embed_tokens.weight", "F32", (2, 1), hashed)
    tied = SourceTensor("lm_head.weight", "F32", (2, 1), hashed)
    own = tied._replace(sha256=hashlib.sha256(b"y").digest())
    assert fingerprint([embed, tied]) == fingerprint([embed])
    assert fingerprint([embed, own]) != fingerprint([embed])


def test_a_file_cut_at_any_byte_has_no_fingerprint(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"embed": EMBED, "norm": NORM})
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(EngineFailed):
            fingerprint_folder(tmp_path)


def test_a_tensor_that_stands_in_two_files_is_refused(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, {"embed": EMBED})
    with pytest.raises(EngineFailed, match="twice"):
        fingerprint_folder(tmp_path)
