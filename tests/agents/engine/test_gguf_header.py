"""GGUF headers: whole ones tell what they hold; garbage is refused, whatever is cut or changed."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.engine.gguf_header import GgufHeader, read_gguf_header
from agents.errors import BadModel


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


KEYS = (
    key("general.architecture", 8, text("llama")),
    key("general.license", 8, text("apache-2.0")),
    key("general.alignment", 4, struct.pack("<I", 32)),
    key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text(b"\xff")),
    key("tokenizer.ggml.scores", 9, struct.pack("<IQff", 6, 2, 0.5, 1.5)),
)


def tensor(name="t", sides=(4, 2), kind=0, at=0):
    return text(name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}QIQ", *sides, kind, at)


TENSOR = tensor()


def gguf(keys=KEYS, tensors=(TENSOR,), n_data=32, version=3, counts=None, magic=b"GGUF"):
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(n_data)


@pytest.fixture
def read(tmp_path):
    def read_bytes(data) -> GgufHeader:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return read_gguf_header(path)

    return read_bytes


def test_a_whole_header_tells_what_it_holds(read):
    header = read(gguf())
    assert (header.architecture, header.licence) == ("llama", "apache-2.0")
    assert (header.n_params, header.n_tensors) == (8, 1)
    assert "tokenizer.ggml.tokens" not in header.values


def test_a_file_cut_at_any_byte_is_refused(read):
    whole = gguf()
    for length in range(len(whole)):
        with pytest.raises(BadModel, match=r"is not a GGUF that can be read: ."):
            read(whole[:length])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(gguf()) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_the_refusal(read, at, byte):
    data = bytearray(gguf())
    data[at] = byte
    try:
        header = read(bytes(data))
    except BadModel:
        return
    assert header.n_tensors == 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=400))
def test_garbage_behind_the_magic_raises_nothing_but_the_refusal(read, garbage):
    with pytest.raises(BadModel):
        read(b"GGUF" + struct.pack("<I", 3) + garbage)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf(magic=b"GGML"), "does not begin with GGUF"),
        (gguf(version=1), "version is 1"),
        (gguf(version=1 << 24), "version is"),
        (gguf(counts=(1 << 60, 1)), "tensors; the limit"),
        (gguf(counts=(1, 1 << 60)), "keys; the limit"),
        (gguf(keys=(*KEYS, KEYS[0])), "stands twice"),
        (gguf(keys=KEYS[1:]), "architecture"),
        (gguf(keys=(*KEYS, key("x", 77, b""))), "type 77"),
        (gguf(keys=(*KEYS, key("x", 9, struct.pack("<IQ", 9, 1)))), "list of values of type 9"),
        (gguf(keys=(*KEYS, key("x", 9, struct.pack("<IQ", 0, 1 << 40)))), "items in a list"),
        (gguf(keys=(*KEYS, key("x", 8, struct.pack("<Q", 1 << 40)))), "bytes of text"),
        (gguf(keys=(*KEYS, key("x", 8, text(b"\xff")))), "not UTF-8"),
        (gguf(keys=(*KEYS[:2], key("general.alignment", 4, struct.pack("<I", 0)))), "alignment"),
        (gguf(keys=(*KEYS[:2], key("general.alignment", 8, text("32")))), "alignment"),
        (gguf(tensors=(TENSOR, TENSOR)), "two tensors"),
        (gguf(tensors=(tensor(sides=(1, 1, 1, 1, 1)),)), "5 dimensions"),
        (gguf(tensors=(tensor(sides=(1 << 60,)),)), "elements a side"),
        (gguf(tensors=(tensor(at=32),)), "behind the file's end"),
        (gguf(tensors=(tensor(at=1 << 63),)), "behind the file's end"),
        (gguf(tensors=(tensor(sides=(1 << 20, 1 << 20)),)), "behind the file's end"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(read, data, reason):
    with pytest.raises(BadModel, match=reason):
        read(data)


def test_a_tensor_of_a_type_that_is_not_known_is_judged_by_its_place(read):
    assert read(gguf(tensors=(tensor(kind=99),))).n_params == 8
