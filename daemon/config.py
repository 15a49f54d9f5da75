"""The settings of a node: config.toml into frozen structs. A key that is not known here is an error."""

import difflib
import math
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from daemon import addresses
from daemon.errors import BadConfig, BadSetting
from storage.durable import write_file

MAX_CONFIG_BYTES: Final = 1 << 20
MAX_GB: Final = 1e9  # an exabyte: more is a slip of the hand
MIN_QUOTA_GB: Final = 0.1  # below, no pack could be filled and compacted
MIN_QUOTA_FILES: Final = 100  # a store needs some beside its packs
MAX_QUOTA_FILES: Final = 1_000_000_000
MIN_UPLOAD_MB_PER_S: Final = 0.001  # below, a block took over half an hour: a slip of the hand
MAX_SERVERS: Final = 8  # of a kind, that are asked at once

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Urls = Annotated[tuple[Annotated[str, Meta(max_length=512)], ...], Meta(max_length=MAX_SERVERS)]


def _said(text: str) -> Meta:
    """What a setting is, as `covey config show` tells it."""
    return Meta(description=text)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""


class NetworkConfig(Section, frozen=True):
    """How other nodes reach this one."""

    host: Annotated[
        str, _said("The address to listen on; 127.0.0.1 is for this machine alone, :: is all of IPv4 and IPv6")
    ] = "0.0.0.0"  # noqa: S104 - a node is there to be reached; every connection is authenticated
    port: Annotated[Port, _said("TCP; 0 takes any that is free")] = 4701
    has_mdns: Annotated[bool, _said("Find the nodes of the local network, and be found")] = True
    bootstrap: Annotated[tuple[str, ...], _said("Peers to connect to: what covey id prints on the other side")] = ()
    is_private: Annotated[bool, _said("Speak with added, trusted and bootstrap peers alone")] = False
    upload_mb_per_s: Annotated[
        float,
        Meta(ge=0, le=MAX_GB),
        _said("The most that blocks to others take, in MB a second; 0 is no limit"),
    ] = 0.0
    is_metered: Annotated[bool, _said("The line is paid by volume: adapters come only when asked for")] = False
    relay: Annotated[
        Literal["off", "client", "server", "public"],
        _said("client: be reached by relays; server: be one; public: for strangers too"),
    ] = "client"
    has_autonat: Annotated[bool, _said("Ask peers whether they can dial this node, and dial those who ask")] = True
    dht: Annotated[Literal["lan", "public"], _said("lan: Covey's own nodes; public: those of IPFS")] = "lan"


class FetchConfig(Section, frozen=True):
    """Where content comes from beside peers. Whoever is asked learns what is looked for; nobody is until named here."""

    gateways: Annotated[Urls, _said("Trustless gateways, such as https://ipfs.example; every block is verified")] = ()
    has_kubo: Annotated[bool, _said("Also the Kubo node of kubo.api: what it has itself")] = False
    has_found_gateways: Annotated[bool, _said("Also gateways that providers name, on the public internet alone")] = (
        False
    )
    routers: Annotated[Urls, _said("Servers that are asked for providers beside the DHT (delegated routing)")] = ()


class StorageConfig(Section, frozen=True):
    """How much of the disk the blocks may take. What is pinned or published is never dropped for it."""

    quota_gb: Annotated[float, Meta(ge=0, le=MAX_GB), _said("In GB; 0 is half of the disk")] = 0.0
    quota_files: Annotated[
        int, Meta(ge=MIN_QUOTA_FILES, le=MAX_QUOTA_FILES), _said("Files (inodes); a file holds 256 MiB of blocks")
    ] = 100_000
    reserve_gb: Annotated[float, Meta(ge=0, le=MAX_GB), _said("What is left free on the disk for others, in GB")] = 0.5


class AdaptersConfig(Section, frozen=True):
    """Adapters that trainings make, and those that come from peers."""

    watch: Annotated[tuple[str, ...], _said("Folders; an adapter that appears below one is published")] = ()
    unasked: Annotated[
        Literal["all", "newer", "none"],
        _said("What comes of itself; newer: versions of what is here; none: what is asked for"),
    ] = "all"
    mb_per_day: Annotated[
        float, Meta(ge=0, le=MAX_GB), _said("In MB: once 24 hours brought so much, none comes of itself; 0: no limit")
    ] = 0.0
    only_idle: Annotated[bool, _said("Nothing comes of itself while the engine answers")] = False


class EngineConfig(Section, frozen=True):
    """The process that holds the model."""

    model: Annotated[str, _said("The model to use where none is named")] = "smollm2"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], _said("Where it computes")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        _said("The kind of numbers; int8 is for weights alone"),
    ] = "auto"
    cache_gb: Annotated[
        float, Meta(ge=0), _said("For what requests have read, earlier prompts included, in GB; 0 is a share of memory")
    ] = 0.0
    adapters_gb: Annotated[
        float, Meta(ge=0), _said("For adapters in memory, in GB; the longest unused give way; 0 is half a GiB")
    ] = 0.0
    is_deterministic: Annotated[
        bool, _said("The same seed gives the same text whatever else runs: each request alone, slower")
    ] = False
    n_threads: Annotated[int, Meta(ge=0), _said("Processor threads; 0 is as many as there are cores")] = 0
    answer_timeout_s: Annotated[Seconds, _said("The longest time for an answer")] = 300.0
    idle_timeout_s: Annotated[Seconds, _said("Unused for so long, it ends and gives back its memory")] = 900.0
    hang_timeout_s: Annotated[Seconds, _said("Without a sign of life for so long at work, it is ended")] = 60.0
    encoder: Annotated[str, _said("A folder with an encoder, for embeddings; empty is the installed MiniLM")] = ""


class BackendConfig(Section, frozen=True):
    """An OpenAI-compatible server that answers in the place of this node's engine; off without a URL."""

    url: Annotated[str, Meta(max_length=512), _said("Such as http://127.0.0.1:8000/v1")] = ""
    kind: Annotated[
        Literal["covey", "vllm", "llama.cpp", "generic"], _said("What it is; Covey and vLLM serve adapters too")
    ] = "generic"
    model: Annotated[str, Meta(max_length=256), _said("The model's name there")] = ""
    base: Annotated[str, Meta(max_length=256), _said("Which model that is here: a name or fingerprint")] = ""
    token_file: Annotated[str, _said("A file with its token")] = ""
    token_env: Annotated[str, _said("Or the environment variable that holds it")] = ""
    adapters_path: Annotated[str, _said("Where vLLM sees this home's adapters folder; empty is the same path")] = ""
    n_adapters: Annotated[Count, _said("Adapters that stay loaded there")] = 8
    context_tokens: Annotated[int, Meta(ge=0, le=1 << 24), _said("Of the model; 0 is what the server says")] = 0
    silence_timeout_s: Annotated[Seconds, _said("The longest wait for the next piece of an answer")] = 120.0


class ChatConfig(Section, frozen=True):
    """How `covey chat` behaves."""

    on_new_adapter: Annotated[
        Literal["switch", "ask", "tell"], _said("switch: it answers the next message; ask: first; tell: only say so")
    ] = "switch"
    max_tokens: Annotated[Count, _said("The longest answer")] = 256
    system: Annotated[str, _said("The system prompt; empty is Covey's own")] = ""


class AskConfig(Section, frozen=True):
    """Answering the questions of peers with the model of this node."""

    is_enabled: Annotated[bool, _said("Answer peers that may ask")] = False
    who: Annotated[
        Literal["trusted", "flock"], _said("trusted: peers trusted with ask; flock: all that are trusted with anything")
    ] = "trusted"
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 16), _said("The longest answer")] = 1024
    timeout_s: Annotated[float, Meta(gt=0, le=3600), _said("The longest time for one, the waiting included")] = 300.0
    n_at_once: Annotated[Count, _said("Questions of one peer under way or waiting")] = 2
    n_per_minute: Annotated[Count, _said("Questions of one peer a minute")] = 20
    tokens_per_hour: Annotated[Count, _said("Tokens of one peer an hour, prompts included")] = 20_000
    tokens_per_day: Annotated[Count, _said("Tokens of one peer a day, prompts included")] = 100_000
    n_running: Annotated[Count, _said("Questions of all peers that are answered at a time")] = 2
    n_queued: Annotated[int, Meta(ge=0), _said("Questions of all peers that may wait for that")] = 8


class CacheConfig(Section, frozen=True):
    """Answers that are given again to the same question: same model, adapter, chat and options."""

    is_enabled: Annotated[bool, _said("Keep repeatable answers: those at temperature 0 or with a seed")] = True
    memory_mb: Annotated[int, Meta(ge=0, le=1 << 20), _said("In memory, in MB")] = 16
    disk_mb: Annotated[int, Meta(ge=0, le=1 << 20), _said("On the disk too, in MB; 0 writes none there")] = 0
    ttl_s: Annotated[Seconds, _said("Older ones are not given")] = 604_800.0
    semantic_distance: Annotated[
        float, Meta(ge=0, le=1), _said("Also to a similar question, up to this distance, such as 0.05; 0 is never")
    ] = 0.0


class GatewayConfig(Section, frozen=True):
    """What everybody may see, over HTTP; nothing is fetched for it."""

    is_enabled: Annotated[bool, _said("Listen, and serve what is public here")] = False
    host: Annotated[str, _said("The address to listen on; 127.0.0.1 is for this machine alone")] = "127.0.0.1"
    port: Annotated[Port, _said("TCP; 0 takes any that is free")] = 4702
    n_requests: Annotated[Count, _said("Served at once; more are told to come again")] = 64
    n_connections: Annotated[Count, _said("Open at once; more are closed")] = 256
    has_routing: Annotated[bool, _said("Also tell who has what is public here: itself (delegated routing)")] = False
    takes_names: Annotated[bool, _said("Also keep records of names that others put here; needs has_routing")] = False
    request_timeout_s: Annotated[Seconds, _said("The longest time for one reply")] = 3600.0
    max_reply_bytes: Annotated[int, Meta(ge=1 << 20), _said("The longest reply; more goes in ranges")] = 64 << 30


class OpenAiConfig(Section, frozen=True):
    """Models and adapters for programs that speak OpenAI's API; they need the token of `covey openai token`."""

    is_enabled: Annotated[bool, _said("Listen, and answer those who have the token")] = False
    host: Annotated[str, _said("The address to listen on; 127.0.0.1 is for this machine alone")] = "127.0.0.1"
    port: Annotated[Port, _said("TCP; 0 takes any that is free")] = 4703
    hosts: Annotated[tuple[str, ...], _said("Other names under which it may be called")] = ()
    n_answers: Annotated[Count, _said("Under way or waiting at once; more are told to come again")] = 64
    n_connections: Annotated[Count, _said("Open at once; more are closed")] = 256


class A2aConfig(Section, frozen=True):
    """Agents of workspaces for programs that speak A2A; they need the token of `covey openai token`."""

    is_enabled: Annotated[bool, _said("Listen, and let those who have the token ask agents")] = False
    host: Annotated[str, _said("The address to listen on; 127.0.0.1 is for this machine alone")] = "127.0.0.1"
    port: Annotated[Port, _said("TCP; 0 takes any that is free")] = 4704
    hosts: Annotated[tuple[str, ...], _said("Other names under which it may be called")] = ()
    n_connections: Annotated[Count, _said("Open at once; more are closed")] = 256


class WorkspacesConfig(Section, frozen=True):
    """The histories of workspaces on this node."""

    max_mib: Annotated[
        int, Meta(ge=1, le=1 << 20), _said("Memory for the entries of each, in MiB; a member has a fourth of it")
    ] = 512


class KuboConfig(Section, frozen=True):
    """A Kubo node beside this one. It is asked for nothing until a command or `publish` says so."""

    api: Annotated[str, Meta(max_length=512), _said("Where its RPC API is")] = "http://127.0.0.1:5001"
    publish: Annotated[bool, _said("Send it what is made public here, too")] = False
    timeout_s: Annotated[Seconds, _said("The longest time for one of its answers")] = 60.0


class LogsConfig(Section, frozen=True):
    """What is logged, and how much of it is kept."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _said("The least grave that is logged")] = "info"
    max_bytes: Annotated[int, Meta(ge=1 << 12), _said("Of one file; then the next begins")] = 10 << 20
    n_kept: Annotated[int, Meta(ge=1, le=100), _said("Older files to keep")] = 3


class Config(Section, frozen=True):
    """Every setting, with its default."""

    network: NetworkConfig = NetworkConfig()
    fetch: FetchConfig = FetchConfig()
    storage: StorageConfig = StorageConfig()
    adapters: AdaptersConfig = AdaptersConfig()
    engine: EngineConfig = EngineConfig()
    backend: BackendConfig = BackendConfig()
    chat: ChatConfig = ChatConfig()
    ask: AskConfig = AskConfig()
    cache: CacheConfig = CacheConfig()
    gateway: GatewayConfig = GatewayConfig()
    openai: OpenAiConfig = OpenAiConfig()
    a2a: A2aConfig = A2aConfig()
    workspaces: WorkspacesConfig = WorkspacesConfig()
    kubo: KuboConfig = KuboConfig()
    logs: LogsConfig = LogsConfig()


_KINDS: Final = {  # as msgspec calls them, and people
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "array": "a list",
    "object": "a section",
}
_LEAST_UNLESS_ZERO: Final = {"storage.quota_gb": MIN_QUOTA_GB, "network.upload_mb_per_s": MIN_UPLOAD_MB_PER_S}


def load(path: Path) -> Config:
    """Read the settings; a missing file means the defaults. Raises: BadConfig."""
    return parse(_read(path), str(path))


def parse(text: str, name: str = "config.toml") -> Config:
    """Settings from TOML text. Raises: BadConfig, naming the key and the nearest that exists."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfig(f"{name} is not TOML: {error}") from None
    return _checked(table, name)


def _checked(table: dict[str, Any], name: str) -> Config:
    """The settings in a table. Raises: BadConfig."""
    _refuse_unknown(table, Config, "", name)
    _refuse_out_of_range(table, name)
    _refuse_no_choice(table, name)
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        told = re.sub("`([a-z]+)`", lambda kind: _KINDS.get(kind[1], kind[0]), text)
        raise BadConfig(f"{name}: {where.strip('.`') or 'the file'}: {told}") from None


def _refuse_no_choice(table: dict[str, Any], name: str) -> None:
    """Words where a setting is one of several, with these. What is no text is left to the types."""
    for section, values in table.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            kind = _fields(_fields(Config)[section])[key]
            choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
            if choices and isinstance(value, str) and value not in choices:
                raise BadConfig(f"{name}: {section}.{key} cannot be {value[:80]!r}; it is one of: {', '.join(choices)}")


def _refuse_out_of_range(table: dict[str, Any], name: str) -> None:
    """Numbers beyond what a setting allows, with what it does allow. What is no number is left to the types."""
    for section, values in table.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if type(value) not in (int, float):
                continue
            low, is_open, high = _bounds(_fields(Config)[section], key)
            least = _LEAST_UNLESS_ZERO.get(f"{section}.{key}", low)
            fits = low <= value <= high and not (is_open and value == low) and (value == 0 or value >= least)
            if not fits or not math.isfinite(value):
                raise BadConfig(f"{name}: {section}.{key} cannot be {value}; {_allowed(low, is_open, least, high)}")


def _bounds(section: type[msgspec.Struct], name: str) -> tuple[float, bool, float]:
    """The least number of a setting, is that one excluded, and the greatest."""
    annotated = typing.get_type_hints(section, include_extras=True)[name]
    metas: list[Meta] = list(getattr(annotated, "__metadata__", ()))
    low = max((meta.ge for meta in metas if meta.ge is not None), default=-math.inf)
    above = max((meta.gt for meta in metas if meta.gt is not None), default=-math.inf)
    high = min((meta.le for meta in metas if meta.le is not None), default=math.inf)
    return max(low, above), above >= low and math.isfinite(above), high


def _allowed(low: float, is_open: bool, least: float, high: float) -> str:
    zero = f"{low:g}, and from {least:g}" if least > low else f"{'above' if is_open else 'from'} {low:g}"
    return f"allowed is {zero}" + (f" to {high:,.0f}" if math.isfinite(high) else "")


def show(config: Config) -> str:
    """The settings in force as TOML, each with what it is."""
    lines = []
    for section, values in msgspec.to_builtins(config).items():
        kind = _fields(Config)[section]
        lines += [f"# {kind.__doc__}", f"[{section}]"]
        lines += [f"{key} = {_toml(value)}  # {_about(kind, key)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def as_json(config: Config) -> str:
    """The settings in force as JSON."""
    return msgspec.json.encode(config).decode()


def get(config: Config, key: str) -> object:
    """One setting by its dotted key. Raises: BadConfig."""
    section, name = _split(key)
    return msgspec.to_builtins(getattr(getattr(config, section), name))


def edit(path: Path, key: str, value: str) -> Config:
    """Set one key in the file, durably; comments and order stay. Return the settings. Raises: BadConfig, BadSetting.

    `value` is TOML; for a text setting the quotes may be left out, for a list setting commas do.
    """
    section, name = _split(key)
    before = _read(path)
    wanted: dict[str, Any] = dict(tomllib.loads(before)) if before else {}
    parse(before, str(path))
    read = _value(section, name, value)
    wanted[section] = {**wanted.get(section, {}), name: read}
    try:
        _checked(wanted, "nothing is changed")  # first of all: what is out of range may have no form in a file either
        addresses.refuse(f"{section}.{name}", read, "nothing is changed")
    except BadConfig as error:
        raise BadSetting(str(error)) from None
    after = _with_line(before, section, name, _toml(read))
    if _table(after) != wanted:
        raise BadConfig(f"{path} is written in a way that cannot be edited by line; set {key} = {_toml(read)} by hand")
    config = parse(after, str(path))
    write_file(path, after.encode())
    return config


def refuse_no_addresses(config: Config, name: str) -> None:
    """Addresses, in a file that was written by hand, that the daemon could not start with. Raises: BadConfig."""
    for setting in addresses.SETTINGS:
        if (value := get(config, setting)) != get(Config(), setting):
            addresses.refuse(setting, value, name)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise BadConfig(f"{path} is over {MAX_CONFIG_BYTES} bytes")
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path} is not UTF-8 text (byte {error.start})") from None


def _fields(section: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys of a section, and their types without what is annotated."""
    types_ = typing.get_type_hints(section)
    return {name: types_[name] for name in section.__struct_fields__}


def _about(section: type[msgspec.Struct], name: str) -> str:
    """What a setting is, and what else it may be."""
    annotated = typing.get_type_hints(section, include_extras=True)[name]
    text = next(str(meta.description) for meta in annotated.__metadata__ if meta.description)
    choices = typing.get_args(annotated.__origin__) if typing.get_origin(annotated.__origin__) is Literal else ()
    return text if all(choice in text for choice in choices) else f"{text}: {', '.join(choices)}"


def _refuse_unknown(table: dict[str, Any], section: type[msgspec.Struct], prefix: str, name: str) -> None:
    known = _fields(section)
    for key, value in table.items():
        if key not in known:
            raise BadConfig(f"{name}: {prefix}{key} is not a setting{_nearest(key, known, prefix)}")
        if isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], msgspec.Struct):
            _refuse_unknown(value, known[key], f"{prefix}{key}.", name)


def _nearest(key: str, known: "dict[str, Any] | list[str]", prefix: str = "") -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else f"; there are: {', '.join(prefix + k for k in known)}"


def _split(key: str) -> tuple[str, str]:
    every = [f"{section}.{name}" for section, kind in _fields(Config).items() for name in _fields(kind)]
    if key not in every:
        raise BadConfig(f"{key} is not a setting{_nearest(key, every)}")
    section, _, name = key.partition(".")
    return section, name


def _value(section: str, name: str, text: str) -> object:
    kind = _fields(_fields(Config)[section])[name]
    if _is_text(kind) and not text.startswith(('"', "'")):
        return text
    if typing.get_origin(kind) is tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise BadSetting(f"{section}.{name}: {text!r} is not a value; write true, 12, 1.5 or a list") from None


def _table(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _is_text(kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(kind))
    return kind is str and not isinstance(kind, types.GenericAlias)


def _with_line(text: str, section: str, name: str, value: str) -> str:
    """`text` with `name = value` in `[section]`: in place of the old line, or at the end of section or file."""
    lines = text.splitlines()
    heads = [index for index, line in enumerate(lines) if line.split("#")[0].strip() == f"[{section}]"]
    if not heads:
        gap = [""] if lines and lines[-1].strip() else []
        return "\n".join([*lines, *gap, f"[{section}]", f"{name} = {value}"]) + "\n"
    start = heads[0] + 1
    end = next((index for index in range(start, len(lines)) if lines[index].lstrip().startswith("[")), len(lines))
    for index in range(start, end):
        if lines[index].partition("=")[0].strip() == name:
            lines[index] = f"{name} = {value}"
            break
    else:
        while end > start and not lines[end - 1].strip():
            end -= 1
        lines.insert(end, f"{name} = {value}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's texts, numbers, booleans and flat lists are TOML's too.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
