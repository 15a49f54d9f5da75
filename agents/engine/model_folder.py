"""Look into a base model's folder without torch and without trusting it: what may it hold, and what model is it?

Nothing of it is executed: no code of its own, no pickle. Only the JSON files and the headers of the weights are read.
Source, for how PyTorch's files begin: the zip and pickle formats (PK 03 04; 80 and a protocol number).
"""

import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import msgspec

from agents.adapters.safetensors_header import Header, parse_json, read_header
from agents.engine.fingerprint import fingerprint_folder
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter, BadModel, NoRoom
from storage.durable import write_file

CARD_FILE: Final = "covey-model.json"  # written beside the weights when the model is complete; never from a peer
STAGING: Final = ".importing"  # how the hidden folders end in which models are put together
ASIDE: Final = ".removed"  # and those that are being deleted
CONFIG_FILE: Final = "config.json"
TOKENIZER_FILE: Final = "tokenizer.json"
WEIGHTS: Final = "*.safetensors"

# What a model consists of -> the size limit of each file in bytes. Neither code nor pickles are among it.
FILES: Final[Mapping[str, int]] = {
    WEIGHTS: 1 << 40,
    "model.safetensors.index.json": 16 << 20,
    CONFIG_FILE: 1 << 20,
    "generation_config.json": 1 << 20,
    TOKENIZER_FILE: 128 << 20,
    "tokenizer_config.json": 16 << 20,
    "special_tokens_map.json": 1 << 20,
    "chat_template.jinja": 1 << 20,
    "LICENSE*": 1 << 20,
}
MAX_FILES: Final = 1024
MAX_CARD_BYTES: Final = 64 << 10
MAX_COUNT: Final = 1 << 48
SPARE_BYTES: Final = 256 << 20  # of the disk, that no model takes

# Files that Python's pickle reads, by their endings: opening one runs what it says.
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
_CODE_KEY: Final = "auto_map"


def limit_of(name: str) -> int | None:
    """The most bytes that a model's file of this name may have; None where it is no part of a model."""
    return next((limit for pattern, limit in FILES.items() if fnmatchcase(name, pattern)), None)


def is_pickle(name: str) -> bool:
    """Does a file of this name hold pickled weights, or others that are never opened?"""
    return name.lower().endswith(_PICKLES)


def check_names(names: Iterable[str], where: str) -> None:
    """Do these files make a model? Raises: BadModel."""
    found = set(names)
    if len(found) > MAX_FILES:
        raise BadModel(f"{where} holds {len(found)} files; a model has at most {MAX_FILES}")
    if not any(fnmatchcase(name, WEIGHTS) for name in found):
        pickled = sorted(name for name in found if is_pickle(name))
        if pickled:
            raise BadModel(
                f"{where} has its weights in {pickled[0][:80]}, which is never opened: Pickled weights can run code. "
                "Save them as .safetensors first"
            )
        raise BadModel(f"{where} has no .safetensors file: choose the folder of a model")
    for needed in (CONFIG_FILE, TOKENIZER_FILE):
        if needed not in found:
            raise BadModel(f"{where} has no {needed}: only complete models with a fast tokenizer are taken")


def source_files(folder: Path) -> list[Path]:
    """The files of a folder on this machine that make up its model; all others are left where they are.

    Raises: BadModel, also for a symlink that leads out of the folder: what it names would be shared with the model.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    check_names(names, str(folder))
    taken = []
    for name in names:
        limit, path = limit_of(name), folder / name
        if limit is None:
            continue
        _check_link(path, folder)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadModel(f"{path} is not a file")
        if status.st_size > limit:
            raise BadModel(f"{path} has {status.st_size} bytes; the limit is {limit}")
        taken.append(path)
    return taken


def make_card(folder: Path, name: str, derived_from: str | None = None, licence: str | None = None) -> ModelCard:
    """Describe the model whose files stand in `folder`; reads every byte of the weights. Raises: BadModel, OSError."""
    config = read_config(folder)
    headers = [read_weights_header(file) for file in sorted(folder.glob(WEIGHTS))]
    fingerprint = str(fingerprint_folder(folder))
    return card_of_parts(
        config,
        headers,
        name=name,
        fingerprint=fingerprint,
        derived_from=derived_from,
        has_chat_template=_has_chat_template(folder),
        licence=licence,
    )


# What the card of a merged model says of its making, and a manifest, under the same names, as facts.
MERGED: Final = ("merged_base", "merged_base_name", "merged_adapter", "merged_adapter_name")
MAX_MERGED_CHARS: Final = 256


def merged_of(card: ModelCard) -> dict[str, str]:
    """Of which model and adapter it was made; empty for one that was not merged."""
    return {name: value for name in MERGED if (value := getattr(card, name)) is not None}


def with_merged(card: ModelCard, facts: Mapping[str, object]) -> ModelCard:
    """The card with what `facts` say of its making: somebody's word."""
    said = {name: value for name in MERGED if isinstance(value := facts.get(name), str)}
    return msgspec.structs.replace(card, **{name: value[:MAX_MERGED_CHARS] for name, value in said.items()})


def card_of_parts(
    config: Mapping[str, Any],
    headers: Iterable[Header],
    *,
    name: str,
    fingerprint: str,
    derived_from: str | None,
    has_chat_template: bool,
    licence: str | None,
) -> ModelCard:
    """Describe a model by its configuration and the headers of its weights. Raises: BadModel."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BadModel("config.json does not tell the architecture: only decoder models with their own are taken")
    n_params = sum(tensor.n_elements for tensor in tensors)
    n_layers, vocabulary = _count(config, "num_hidden_layers"), _count(config, "vocab_size")
    if n_layers > len(tensors) or vocabulary > n_params:  # it would be built before that is noticed
        raise BadModel(
            f"config.json describes {n_layers:,} layers and {vocabulary:,} words, and the weights are "
            f"{len(tensors):,} tensors of {n_params:,} numbers: one of the two is of another model"
        )
    return ModelCard(
        name=name,
        fingerprint=fingerprint,
        derived_from=derived_from,
        architecture=architectures[0][:128],
        n_params=n_params,
        n_layers=n_layers,
        hidden_size=_count(config, "hidden_size"),
        vocabulary=vocabulary,
        context_tokens=_count(config, "max_position_embeddings"),
        dtype="+".join(sorted({tensor.dtype for tensor in tensors})),
        has_chat_template=has_chat_template,
        licence=licence,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, and no word of it that asks for code. Raises: BadModel, OSError."""
    config = read_object(folder / CONFIG_FILE)
    check_config(config)
    if (tokenizer := folder / "tokenizer_config.json").exists():
        refuse_code(read_object(tokenizer), tokenizer.name)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Can the model be loaded without code of its own? Raises: BadModel."""
    refuse_code(config, CONFIG_FILE)
    if "quantization_config" in config:
        raise BadModel(
            "config.json says quantization_config: quantised weights are taken from .gguf files alone. "
            "Bring in the original model, or its GGUF"
        )


def refuse_code(fields: Mapping[str, Any], name: str) -> None:
    """Raises: BadModel where a configuration names Python code to run (what trust_remote_code would)."""
    if fields.get(_CODE_KEY):
        raise BadModel(
            f"{name} names code of the model's own ({_CODE_KEY}), which is never run: only architectures that "
            "transformers knows are taken. If yours is one, save it with save_pretrained without that code"
        )


def read_weights_header(file: Path) -> Header:
    """The header of one file of a model's weights. Raises: BadModel, OSError."""
    try:
        return read_header(file)
    except BadAdapter as error:
        raise BadModel(f"{file.name}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a model's folder, strictly. Raises: BadModel, OSError."""
    limit = limit_of(path.name) or MAX_CARD_BYTES
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BadModel(f"{path.name} is over {limit} bytes, the most that it may have")
    return parse_object(data, path.name)


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object of a model's, strictly: no key twice, no NaN. Raises: BadModel."""
    try:
        return parse_json(data, name)
    except BadAdapter as error:
        raise BadModel(str(error)) from None


def check_room(folder: Path, n_bytes: int, what: str) -> None:
    """Does so much more fit on the disk that `folder` is on? Asked before anything is written. Raises: NoRoom."""
    there = folder
    while not there.exists():
        there = there.parent
    free_bytes = shutil.disk_usage(there).free - SPARE_BYTES
    if n_bytes > free_bytes:
        raise NoRoom(
            f"{what} needs {n_bytes:,} bytes of the disk at {there}, which has {max(0, free_bytes):,} to spare"
        )


def write_card(folder: Path, card: ModelCard) -> None:
    """Put the card beside the weights: the last file, which says that the model is complete."""
    write_file(folder / CARD_FILE, msgspec.json.format(msgspec.json.encode(card)))


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.exists() and bool(read_object(tokenizer).get("chat_template"))


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise BadModel(f"config.json does not tell {key}: only decoder models with their own are taken")
    return value


def _check_link(path: Path, folder: Path) -> None:
    """A symlink may lead to another place in the folder, or, as the Hugging Face cache has it, to its blobs."""
    if not path.is_symlink():
        return
    try:
        target, inside = path.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError):
        raise BadModel(f"{path} is a symlink that leads nowhere") from None
    is_cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
    if inside not in target.parents and not is_cached:
        raise BadModel(f"{path} is a symlink out of the folder, to {target}: put the file itself there")
