"""Look into a PEFT folder without torch, without unpickling and without trusting it: is it an adapter, and of what?

Only the safetensors header and a few bounded JSON files are read. What an adapter may consist of is an allow-list:
of files, of configuration keys, of tensor names. Everything else is refused with its reason.
"""

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agents.adapters.safetensors_header import Header, Tensor, parse_json, read_header
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter, WrongBase

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
TRAINING_FILE: Final = "training.json"

# What a folder may hold -> the size limit of the file in bytes. `metadata.pt` is a pickle that some trainers leave:
# it is carried as it is and never opened.
FILES: Final[Mapping[str, int]] = {
    CONFIG_FILE: 256 << 10,
    WEIGHTS_FILE: 8 << 30,
    "README.md": 1 << 20,
    "metadata.json": 1 << 20,
    TRAINING_FILE: 1 << 20,
    "metadata.pt": 16 << 20,
}
MAX_RANK: Final = 4096
MAX_ALPHA: Final = 1e6
MAX_TARGETS: Final = 64
MAX_TARGET_CHARS: Final = 128
MAX_PATTERNS: Final = 4096
MAX_BASE_CHARS: Final = 512
MAX_FACTS: Final = 32
MAX_FACT_CHARS: Final = 256

# Keys that PEFT's LoRA reads and that mean no harm with any value of the right kind.
_HARMLESS: Final[Mapping[str, tuple[type, ...]]] = {
    "ensure_weight_tying": (bool,),
    "exclude_modules": (list,),
    "fan_in_fan_out": (bool,),
    "inference_mode": (bool,),
    "layers_pattern": (str, list),
    "layers_to_transform": (int, list),
    "loftq_config": (dict,),
    "lora_dropout": (int, float),
    "peft_version": (str,),
    "qalora_group_size": (int,),
    "revision": (str,),
    "task_type": (str,),
}
# Keys of which exactly these values are accepted: others would change the base model or name code to import.
_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian"),
    "megatron_core": ("megatron.core", None),
}
_READ: Final = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "lora_alpha",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)

_TENSOR: Final = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\."
    r"(?:lora_(?P<half>[AB])\.weight|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)
_LAYER: Final = re.compile(r"(?:layers|h|blocks)\.(\d{1,5})\.")
# Projections whose one side is the model's hidden size, in the families that use these names.
_READS_HIDDEN: Final = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj"})
_WRITES_HIDDEN: Final = frozenset({"o_proj", "down_proj"})


Fact = str | int | float | bool


class Config(NamedTuple):
    """What `adapter_config.json` says, as far as it matters."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str
    ranks: frozenset[int]
    use_rslora: bool
    use_dora: bool


class Pair(NamedTuple):
    """The shapes of the two halves of one adapted layer: A is (rank, n_in), B is (n_out, rank)."""

    module: str
    rank: int
    n_in: int
    n_out: int


class Inspection(NamedTuple):
    """What a valid adapter is. `targets` are the kinds of layer that it really changes; `training` is its own claim."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    n_params: int
    n_bytes: int
    base_name: str
    use_rslora: bool
    use_dora: bool
    files: tuple[tuple[str, int], ...]
    training: Mapping[str, Fact]


def inspect_folder(folder: Path, card: ModelCard | None = None) -> Inspection:
    """Check the PEFT folder, against the base model too where its card is given. Raises: BadAdapter, WrongBase."""
    files = list_files(folder)
    try:
        config = parse_config(_read(folder / CONFIG_FILE))
        header = read_header(folder / WEIGHTS_FILE)
        provenance: dict[str, Fact] = {}
        for name in ("metadata.json", TRAINING_FILE):
            if name in files:
                provenance |= _facts(parse_json(_read(folder / name), name))
    except OSError as error:
        raise BadAdapter(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from None
    pairs = check_tensors(header, config)
    if card is not None:
        check_fits(pairs, card)
    return Inspection(
        rank=config.rank,
        alpha=config.alpha,
        targets=tuple(sorted({pair.module.rpartition(".")[2] for pair in pairs})),
        dtypes=tuple(sorted({tensor.dtype for tensor in header.tensors})),
        pairs=pairs,
        n_params=sum(tensor.n_elements for tensor in header.tensors),
        n_bytes=sum(files.values()),
        base_name=config.base_name,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        files=tuple(sorted(files.items())),
        training=dict(sorted(provenance.items())[:MAX_FACTS]),
    )


def list_files(folder: Path) -> dict[str, int]:
    """The files of the folder and their sizes: only what an adapter may hold. Raises: BadAdapter."""
    found: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                check_file(entry.name, status.st_size, is_regular=stat.S_ISREG(status.st_mode))
                found[entry.name] = status.st_size
    except OSError as error:
        raise BadAdapter(f"{folder} is not a folder that can be read: {error.strerror}") from None
    check_complete(found)
    return found


def check_file(name: str, n_bytes: int, *, is_regular: bool = True) -> None:
    """May this file be part of an adapter? Raises: BadAdapter."""
    if name not in FILES:
        raise BadAdapter(
            f"{name[:80]!r} has no place in an adapter, which holds {', '.join(FILES)}. Move it elsewhere."
        )
    if not is_regular:
        raise BadAdapter(f"{name} is a link or a folder, not a file. Put the file itself there.")
    if n_bytes > FILES[name]:
        raise BadAdapter(f"{name} has {n_bytes} bytes; the limit is {FILES[name]}")


def check_complete(names: Iterable[str]) -> None:
    """Are the two files there that make an adapter? Raises: BadAdapter."""
    for name in sorted({CONFIG_FILE, WEIGHTS_FILE}.difference(names)):
        raise BadAdapter(f"{name} is missing: save the adapter with PEFT's save_pretrained")


def parse_config(text: bytes) -> Config:
    """Read `adapter_config.json` through the allow-list. Raises: BadAdapter."""
    fields = parse_json(text, CONFIG_FILE)
    for key, value in fields.items():
        _check_key(key, value)
    if fields.get("peft_type") != "LORA":
        raise BadAdapter("adapter_config.json does not say peft_type LORA: only LoRA adapters are shared")
    rank = _whole(fields.get("r"), "r", MAX_RANK)
    for alpha in _pattern(fields, "alpha_pattern"):
        _alpha(alpha, "alpha_pattern")
    return Config(
        rank=rank,
        alpha=_alpha(fields.get("lora_alpha"), "lora_alpha"),
        targets=_targets(fields.get("target_modules")),
        base_name=_base_name(fields.get("base_model_name_or_path")),
        ranks=frozenset({rank, *(_whole(item, "rank_pattern", MAX_RANK) for item in _pattern(fields, "rank_pattern"))}),
        use_rslora=_flag(fields, "use_rslora"),
        use_dora=_flag(fields, "use_dora"),
    )


def check_tensors(header: Header, config: Config) -> tuple[Pair, ...]:
    """Do the tensors form whole LoRA pairs of the configured rank and targets? Raises: BadAdapter."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None:
            raise BadAdapter(f"tensor {tensor.name[:120]!r} is not part of a LoRA on linear layers")
        halves.setdefault(match["module"], {})[match["half"] or "magnitude"] = tensor
    for module in halves:
        if not any(module == target or module.endswith(f".{target}") for target in config.targets):
            raise BadAdapter(f"layer {module!r} is adapted but is none of the target_modules")
    return tuple(_pair(module, tensors, config) for module, tensors in sorted(halves.items()))


def check_fits(pairs: Iterable[Pair], card: ModelCard) -> None:
    """Do the shapes fit the base model, as far as its card tells (a backend's may not)? Raises: WrongBase."""
    for pair in pairs if card.hidden_size else ():
        kind = pair.module.rpartition(".")[2]
        width = pair.n_in if kind in _READS_HIDDEN else pair.n_out if kind in _WRITES_HIDDEN else card.hidden_size
        if width != card.hidden_size:
            raise WrongBase(f"{pair.module} is made for a width of {width}, {card.name} has {card.hidden_size}")
        layer = _LAYER.search(pair.module)
        if layer is not None and int(layer[1]) >= card.n_layers:
            raise WrongBase(f"{pair.module} adapts layer {layer[1]}, {card.name} has {card.n_layers} layers")


def _pair(module: str, tensors: Mapping[str, Tensor], config: Config) -> Pair:
    down, up, magnitude = tensors.get("A"), tensors.get("B"), tensors.get("magnitude")
    if down is None or up is None:
        raise BadAdapter(f"layer {module!r} has only one of lora_A and lora_B")
    if len(down.shape) != 2 or len(up.shape) != 2 or 0 in down.shape + up.shape:
        raise BadAdapter(f"layer {module!r} is not adapted by two matrices")
    rank = down.shape[0]
    if rank != up.shape[1] or rank not in config.ranks:
        raise BadAdapter(
            f"layer {module!r} has shapes {down.shape} and {up.shape}; adapter_config.json says rank {config.rank}"
        )
    if (magnitude is not None) != config.use_dora:
        raise BadAdapter(f"layer {module!r} and use_dora in adapter_config.json do not agree")
    if magnitude is not None and magnitude.n_elements != up.shape[0]:
        raise BadAdapter(
            f"the DoRA magnitude of layer {module!r} has {magnitude.n_elements} numbers, not {up.shape[0]}"
        )
    return Pair(module, rank, down.shape[1], up.shape[0])


def _check_key(key: str, value: object) -> None:
    if key in _READ:
        return
    if key in _FIXED:
        if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in _FIXED[key]):
            raise BadAdapter(f"{key} is {str(value)[:60]!r} in adapter_config.json, which is not accepted")
        return
    # Every PEFT release adds options that are off; one that is on may mean anything.
    if value is None or value is False or value == [] or value == {}:
        return
    if not isinstance(value, _HARMLESS.get(key, ())):
        raise BadAdapter(f"{key[:60]!r} is set in adapter_config.json and is not accepted: only plain LoRA is shared")


def _whole(value: object, what: str, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise BadAdapter(f"{what} in adapter_config.json is not a whole number from 1 to {limit}")
    return value


def _alpha(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise BadAdapter(f"{what} in adapter_config.json is not a number above 0 and up to {MAX_ALPHA:g}")
    return float(value)


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key)
    if value not in (True, False, None) or isinstance(value, int) != isinstance(value, bool):
        raise BadAdapter(f"{key} in adapter_config.json is neither true nor false")
    return bool(value)


def _pattern(fields: Mapping[str, Any], key: str) -> Iterable[object]:
    value = fields.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise BadAdapter(f"{key} in adapter_config.json is not a map of at most {MAX_PATTERNS} entries")
    return value.values()


def _targets(value: object) -> tuple[str, ...]:
    # PEFT also takes a string here and runs it as a regular expression: a peer's expression can run for ever.
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TARGETS:
        raise BadAdapter(f"target_modules in adapter_config.json is not a list of 1 to {MAX_TARGETS} names")
    for target in value:
        if not isinstance(target, str) or not 1 <= len(target) <= MAX_TARGET_CHARS:
            raise BadAdapter(f"a name in target_modules is not text of at most {MAX_TARGET_CHARS} characters")
    return tuple(sorted(value))


def _base_name(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_BASE_CHARS:
        raise BadAdapter(f"base_model_name_or_path is not text of at most {MAX_BASE_CHARS} characters")
    return value


def _facts(fields: Mapping[str, Any]) -> dict[str, Fact]:
    """The plain facts of a provenance file: nested ones stay in the file alone."""
    return {key: value for key, value in fields.items() if len(key) <= MAX_FACT_CHARS and _is_fact(value)}


def _is_fact(value: object) -> bool:
    match value:
        case bool():
            return True
        case str():
            return len(value) <= MAX_FACT_CHARS
        case int():
            return abs(value) < 1 << 63
        case float():
            return math.isfinite(value)
    return False


def _read(path: Path) -> bytes:
    """All of a small file; a file that grew since it was listed is not read beyond its limit."""
    with path.open("rb") as file:
        data = file.read(FILES[path.name] + 1)
    check_file(path.name, len(data))
    return data
