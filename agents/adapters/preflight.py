"""Judge an adapter while its bytes are still with its publisher: by its files' roots, its configuration, and the header
of its weights. That is kilobytes; what is refused here costs no more."""

from functools import partial

from agents.adapters.inspect import CONFIG_FILE, WEIGHTS_FILE, Inspection, check_complete, check_file, inspect_parts
from agents.adapters.safetensors_header import Header, header_length, parse_header
from agents.adapters.shelf import base_for, check_claims, check_files
from agents.artifacts.peek import Peek
from protocols.adapters import Manifest
from storage import unixfs
from storage.cid import Cid

_LENGTH_BYTES = 8


async def preflight(peek: Peek, manifest: Manifest) -> Inspection:
    """Is it what its manifest says, and does it fit the model here? Fetches what tells so, and no more.

    Raises: BadAdapter, Misstated, WrongBase; Remote, StorageError.
    """
    ports, work = peek.ports, peek.ports.exchange.work
    files = await peek.files(manifest.files, partial(check_file, n_bytes=0))
    check_complete(files)
    await work(partial(check_files, ports.store, manifest))
    header = await read_remote_header(peek, files[WEIGHTS_FILE])
    config = await peek.read(files[CONFIG_FILE])
    base = await work(partial(base_for, ports.catalog, manifest.base))
    sizes = {name: unixfs.stat(ports.store, cid).n_bytes for name, cid in files.items()}
    found = await work(partial(inspect_parts, config, header, sizes, manifest.training, *base))
    check_claims(found, manifest)
    return found


async def read_remote_header(peek: Peek, weights: Cid) -> Header:
    """The header of a safetensors file that is with a peer. Raises: BadAdapter, Remote, StorageError."""
    n_bytes = unixfs.stat(peek.ports.store, weights).n_bytes
    length = header_length(await peek.read(weights, 0, _LENGTH_BYTES), n_bytes)
    return parse_header(await peek.read(weights, _LENGTH_BYTES, length), n_bytes - _LENGTH_BYTES - length)
