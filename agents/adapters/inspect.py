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
from typing import Any, Final, NamedTuple, TypeVar

from agents.adapters.fits import Layers, Pair, check_base, check_fits, check_layers
from agents.adapters.safetensors_header import Header, Tensor, parse_json, read_header
from agents.engine.messages import ModelCard
from agents.errors import BadAdapter

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

_TENSOR: Final = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<half>[AB])\.weight")
_PLAIN_NAME: Final = re.compile(r"\^?[A-Za-z0-9_.-]{1,256}")

_MERGE: Final = "merge it into its base with PEFT's merge_and_unload and bring that in with covey model pull FOLDER"
_DORA: Final = (
    "it uses DoRA, which changes the norms of the base's weights and cannot stand beside other adapters: "
    f"{_MERGE}, or train it with use_dora off"
)
# Keys whose values, when set, need more than low-rank products on linear layers -> why, and what to do.
_NEEDS_MORE: Final[Mapping[str, str]] = {
    "bias": f"it trains the base's own biases: {_MERGE}, or train it with bias none",
    "modules_to_save": f"it carries whole layers of its own: {_MERGE}, or train it without modules_to_save",
    "trainable_token_indices": f"it trains tokens of the base: {_MERGE}, or train it without them",
    "lora_bias": f"its low-rank layers have biases: {_MERGE}, or train it with lora_bias off",
    "target_parameters": "it changes parameters that are no linear layers: only linear layers are served",
}
# What stands in the names of such tensors.
_VARIANTS: Final[Mapping[str, str]] = {
    "lora_magnitude_vector": f": {_DORA}",
    "modules_to_save": f": {_NEEDS_MORE['modules_to_save']}",
    "lora_embedding_": ": it adapts the embedding, and only linear layers are served",
    ".bias": f": {_NEEDS_MORE['bias']}",
}


Fact = str | int | float | bool


class Config(NamedTuple):
    """What `adapter_config.json` says, as far as it matters. `ranks` and `alphas` are for the layers of these names."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_name: str
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    use_rslora: bool

    def pair_of(self, module: str, down: Tensor, up: Tensor) -> Pair:
        """The adapted layer `module`, with the rank and alpha that hold for it. Raises: BadAdapter."""
        rank = _for(module, self.ranks, self.rank)
        if down.shape[0] != rank or up.shape[1] != rank:
            raise BadAdapter(
                f"layer {module!r} has shapes {down.shape} and {up.shape}; adapter_config.json says rank {rank}"
            )
        alpha = _for(module, self.alphas, self.alpha)
        scale = alpha / (math.sqrt(rank) if self.use_rslora else rank)
        return Pair(module, rank, down.shape[1], up.shape[0], scale)


class Inspection(NamedTuple):
    """What a valid adapter is. `targets` are the kinds of layer that it really changes; `training` is its own claim.

    `rank` and `alpha` are the configured ones, which patterns may set otherwise for single layers: see `pairs`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    n_params: int
    n_bytes: int
    base_name: str
    use_rslora: bool
    files: tuple[tuple[str, int], ...]
    training: Mapping[str, Fact]


def inspect_folder(folder: Path, card: ModelCard | None = None, layers: Layers | None = None) -> Inspection:
    """Check the PEFT folder, against the base model too as far as its card and layers are given.

    Raises: BadAdapter, WrongBase.
    """
    files = list_files(folder)
    try:
        config = _read(folder / CONFIG_FILE)
        header = read_header(folder / WEIGHTS_FILE)
        provenance: dict[str, Fact] = {}
        for name in ("metadata.json", TRAINING_FILE):
            if name in files:
                provenance |= _facts(parse_json(_read(folder / name), name))
    except OSError as error:
        raise BadAdapter(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from None
    return inspect_parts(config, header, files, provenance, card, layers)


def inspect_parts(
    config_text: bytes,
    header: Header,
    files: Mapping[str, int],
    provenance: Mapping[str, Fact],
    card: ModelCard | None = None,
    layers: Layers | None = None,
) -> Inspection:
    """The same, of what was read: the configuration, the header of the weights, the files and their sizes."""
    config = parse_config(config_text)
    pairs = check_tensors(header, config)
    if card is not None:
        check_base(provenance.get("base"), card)
        check_fits(pairs, card)
        check_layers(pairs, layers or {}, card.name)
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
    if _flag(fields, "use_dora"):
        raise BadAdapter(_DORA)
    return Config(
        rank=_rank(fields.get("r"), "r"),
        alpha=_alpha(fields.get("lora_alpha"), "lora_alpha"),
        targets=_targets(fields.get("target_modules")),
        base_name=_base_name(fields.get("base_model_name_or_path")),
        ranks={key: _rank(rank, "rank_pattern") for key, rank in _pattern(fields, "rank_pattern")},
        alphas={key: _alpha(alpha, "alpha_pattern") for key, alpha in _pattern(fields, "alpha_pattern")},
        use_rslora=_flag(fields, "use_rslora"),
    )


def check_tensors(header: Header, config: Config) -> tuple[Pair, ...]:
    """Do the tensors form whole LoRA pairs of the configured rank and targets? Raises: BadAdapter."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None:
            why = next((reason for mark, reason in _VARIANTS.items() if mark in tensor.name), "")
            raise BadAdapter(f"tensor {tensor.name[:120]!r} is not part of a LoRA on linear layers{why}")
        halves.setdefault(match["module"], {})[match["half"]] = tensor
    for module in halves:
        if not any(module == target or module.endswith(f".{target}") for target in config.targets):
            raise BadAdapter(f"layer {module!r} is adapted but is none of the target_modules")
    return tuple(_pair(module, tensors, config) for module, tensors in sorted(halves.items()))


def _pair(module: str, tensors: Mapping[str, Tensor], config: Config) -> Pair:
    down, up = tensors.get("A"), tensors.get("B")
    if down is None or up is None:
        raise BadAdapter(f"layer {module!r} has only one of lora_A and lora_B")
    if len(down.shape) != 2 or len(up.shape) != 2 or 0 in down.shape + up.shape:
        raise BadAdapter(f"layer {module!r} is not adapted by two matrices")
    return config.pair_of(module, down, up)


def _check_key(key: str, value: object) -> None:
    if key in _READ:
        return
    if key in _FIXED:
        if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in _FIXED[key]):
            why = _NEEDS_MORE.get(key, "which is not accepted")
            raise BadAdapter(f"{key} is {str(value)[:60]!r} in adapter_config.json: {why}")
        return
    # Every PEFT release adds options that are off; one that is on may mean anything.
    if value is None or value is False or value == [] or value == {}:
        return
    if key in _NEEDS_MORE:
        raise BadAdapter(f"{key} is set in adapter_config.json: {_NEEDS_MORE[key]}")
    if not isinstance(value, _HARMLESS.get(key, ())):
        raise BadAdapter(f"{key[:60]!r} is set in adapter_config.json and is not accepted: only plain LoRA is shared")


def _rank(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise BadAdapter(f"{what} in adapter_config.json is not a whole number from 1 to {MAX_RANK}")
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


def _pattern(fields: Mapping[str, Any], key: str) -> Iterable[tuple[str, object]]:
    """What is set for single layers, by the plain name of a layer or the end of one."""
    value = fields.get(key) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise BadAdapter(f"{key} in adapter_config.json is not a map of at most {MAX_PATTERNS} entries")
    for name, item in value.items():
        # PEFT runs these as regular expressions, in which a peer's can take for ever.
        plain = name.replace("\\.", ".")
        if not _PLAIN_NAME.fullmatch(plain):
            raise BadAdapter(f"{key} names {name[:80]!r}, which is no plain name of a layer: expressions are not run")
        yield plain, item


T = TypeVar("T")


def _for(module: str, patterns: Mapping[str, T], default: T) -> T:
    """What the first fitting pattern sets for a layer, as PEFT has it."""
    for name, value in patterns.items():
        whole = name.removeprefix("^")
        if module == whole or (name == whole and module.endswith(f".{whole}")):
            return value
    return default


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
