"""The fingerprint of a base model: a CID over its source tensors, the same on every machine. Torch-free.

It is the CID of the DAG-CBOR list of [name, dtype, shape, sha2-256 of the bytes], sorted by name. How the tensors are
spread over files does not matter. An output head that repeats the embedding is left out: whether a tied tensor is
stored once or twice does not matter either.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from agents.adapters.safetensors_header import read_header
from agents.errors import BadAdapter, EngineFailed
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor

_CHUNK_BYTES: Final = 1 << 20
_HEADS: Final = ("lm_head.weight", "output.weight")


class SourceTensor(NamedTuple):
    """A tensor as it is stored; `dtype` in the words of its format."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: bytes


def fingerprint(tensors: Iterable[SourceTensor]) -> Cid:
    """The fingerprint of the model that consists of `tensors`."""
    ordered = sorted(tensors)
    heads = {tensor.name for tensor in ordered if tensor.name.endswith(_HEADS)}
    others = {tensor[1:] for tensor in ordered if tensor.name not in heads}
    kept = [tensor for tensor in ordered if tensor.name not in heads or tensor[1:] not in others]
    rows = [[tensor.name, tensor.dtype, list(tensor.shape), tensor.sha256] for tensor in kept]
    return Cid.of(dag_cbor.encode(rows), DAG_CBOR)


def fingerprint_folder(folder: Path) -> Cid:
    """The fingerprint of a model that is stored as safetensors. Reads every byte. Raises: EngineFailed, OSError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineFailed(f"{folder} holds no .safetensors file: choose the folder of a model")
    tensors = [tensor for file in files for tensor in _read_tensors(file)]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise EngineFailed(f"{folder} holds a tensor twice: remove the files that do not belong to the model")
    return fingerprint(tensors)


def _read_tensors(path: Path) -> list[SourceTensor]:
    try:
        header = read_header(path)
    except BadAdapter as error:
        raise EngineFailed(f"{path} is not a model's weights: {error}") from None
    with path.open("rb") as file:
        file.seek(path.stat().st_size - header.n_data_bytes)
        return [
            SourceTensor(tensor.name, tensor.dtype, tensor.shape, _hash(file, tensor.end - tensor.begin))
            for tensor in header.tensors
        ]


def _hash(file: BinaryIO, n_bytes: int) -> bytes:
    """Hash the next `n_bytes` of `file`."""
    digest = hashlib.sha256()
    while n_bytes:
        chunk = file.read(min(n_bytes, _CHUNK_BYTES))
        if not chunk:
            raise EngineFailed(f"{file.name} became shorter while it was read: import the model again")
        digest.update(chunk)
        n_bytes -= len(chunk)
    return digest.digest()
