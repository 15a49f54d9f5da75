"""From the bytes of a request to what is asked for: path, format, ranges, conditions. Nothing is looked up here.

Sources: the path gateway and trustless gateway specifications (specs.ipfs.tech/http-gateways), RFC 9110.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from daemon.api.gateway.refusal import Refusal

MAX_PATH_BYTES: Final = 4096
MAX_QUERY_BYTES: Final = 4096
MAX_SEGMENTS: Final = 128
MAX_PARAMS: Final = 32
MAX_ACCEPTED: Final = 32
MAX_FILENAME_CHARS: Final = 255
NAMESPACES: Final = ("ipfs", "ipns")

_SPAN: Final = re.compile(r"(-?[0-9]{1,18}):(\*|-?[0-9]{1,18})")


class Format(StrEnum):
    """In which form; the value is what `?format=` calls it."""

    PLAIN = ""
    RAW = "raw"
    CAR = "car"
    RECORD = "ipns-record"
    DAG_JSON = "dag-json"
    DAG_CBOR = "dag-cbor"
    JSON = "json"
    CBOR = "cbor"


class DagScope(StrEnum):
    """How much of the DAG a CAR holds."""

    BLOCK = "block"
    ENTITY = "entity"
    ALL = "all"


MEDIA_TYPES: Final = {
    Format.RAW: "application/vnd.ipld.raw",
    Format.CAR: "application/vnd.ipld.car",
    Format.RECORD: "application/vnd.ipfs.ipns-record",
    Format.DAG_JSON: "application/vnd.ipld.dag-json",
    Format.DAG_CBOR: "application/vnd.ipld.dag-cbor",
    Format.JSON: "application/json",
    Format.CBOR: "application/cbor",
}
_FORMAT_OF: Final = {media_type: form for form, media_type in MEDIA_TYPES.items()}
_NOT_GIVEN: Final = frozenset({"application/x-tar"})


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last` of an entity, both included. Negative ones count from its end; None is its end."""

    first: int
    last: int | None

    def of(self, n_bytes: int) -> tuple[int, int]:
        """The half-open range within an entity of `n_bytes`; it may be empty."""
        first = max(n_bytes + self.first, 0) if self.first < 0 else self.first
        last = n_bytes - 1 if self.last is None else n_bytes + self.last if self.last < 0 else self.last
        return first, max(min(last + 1, n_bytes), first)


@dataclass(frozen=True, slots=True, kw_only=True)
class CarWish:
    """What a CAR is to hold."""

    scope: DagScope = DagScope.ALL
    span: Span | None = None
    has_duplicates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, read. `path` is as it was sent; `formats` are in the order of preference."""

    path: str
    query: Mapping[str, str]
    namespace: str
    name: str
    segments: tuple[str, ...]
    formats: tuple[Format, ...]
    car: CarWish = CarWish()
    filename: str | None = None
    is_download: bool = False
    is_only_if_cached: bool = False
    if_none_match: str | None = None
    if_range: str | None = None
    range: str | None = None

    @property
    def has_slash(self) -> bool:
        """Does the path end with one, as a folder's does?"""
        return self.path.endswith("/")

    def location_as(self, form: Format) -> str | None:
        """Where the same is found without an Accept header; None where the URL says the format already."""
        if self.query.get("format") == form:
            return None
        rest = {key: value for key, value in self.query.items() if key != "format"}
        return f"{self.path}?{urlencode({'format': form.value, **rest}, quote_via=quote)}"


def read_request(path: bytes, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Asked:
    """Read a GET or HEAD. `path` is percent-encoded, as it was sent. Raises: Refusal."""
    if len(path) > MAX_PATH_BYTES or len(query) > MAX_QUERY_BYTES:
        raise Refusal(414, f"the path or the query is over {MAX_PATH_BYTES} bytes")
    sent = joined(headers)
    params = _params(query)
    if sent.get("service-worker") == "script":
        raise Refusal(400, "a service worker would take over other content of this gateway")
    namespace, name, segments = _parts(path)
    accepted = _accepted(sent.get("accept", ""))
    return Asked(
        path=path.decode("ascii"),
        query=params,
        namespace=namespace,
        name=name,
        segments=segments,
        formats=_formats(params.get("format"), accepted),
        car=_car_wish(params, _car_accepted(accepted)),
        filename=_filename(params.get("filename")),
        is_download=params.get("download") == "true",
        is_only_if_cached="only-if-cached" in sent.get("cache-control", "").lower(),
        if_none_match=sent.get("if-none-match"),
        if_range=sent.get("if-range"),
        range=sent.get("range"),
    )


def joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; of one that comes several times, the values behind each other."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def _params(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMS, errors="strict")
    except ValueError:
        raise Refusal(400, f"the query cannot be read, or has over {MAX_PARAMS} parameters") from None
    return dict(reversed(pairs))  # of two with one name the first counts


def _parts(path: bytes) -> tuple[str, str, tuple[str, ...]]:
    """Namespace, root and names. Each name is decoded once, alone: an escaped slash never becomes a separator."""
    try:
        text = path.decode("ascii")
    except UnicodeDecodeError:
        raise Refusal(400, "the path is not percent-encoded") from None
    namespace, *escaped = text.removeprefix("/").split("/")
    if namespace not in NAMESPACES or not text.startswith("/") or not escaped or not escaped[0]:
        raise Refusal(404, "there is nothing here; content is at /ipfs/CID and /ipns/NAME")
    name, *names = (unquote_to_bytes(part).decode("utf-8", "surrogateescape") for part in escaped if part)
    if len(names) > MAX_SEGMENTS:
        raise Refusal(400, f"the path has over {MAX_SEGMENTS} names")
    if any(part in (".", "..") or "/" in part or "\0" in part for part in names):
        raise Refusal(400, "a name in the path is '.', '..', or holds '/' or NUL")
    return namespace, name, tuple(names)


def _accepted(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The media types of an Accept header with their parameters, the best first."""
    ranked = []
    for item in accept.split(",")[:MAX_ACCEPTED]:
        media_type, *rest = (part.strip().lower() for part in item.split(";"))
        params = {key.strip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        try:
            quality = float(params.pop("q", "1"))
        except ValueError:
            quality = 0.0
        if media_type and quality > 0:
            ranked.append((quality, media_type, params))
    ranked.sort(key=lambda entry: -entry[0])
    return [(media_type, params) for _, media_type, params in ranked]


def _formats(wanted: str | None, accepted: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[Format, ...]:
    """`?format=` decides; else the Accept header, in which whatever is no format of IPLD means plain content."""
    if wanted:
        if wanted not in tuple(Format):
            raise Refusal(406, f"the format is not given here; there are: {', '.join(filter(None, Format))}")
        return (Format(wanted),)
    given = [_FORMAT_OF.get(kind, Format.PLAIN) for kind, _ in accepted if kind not in _NOT_GIVEN]
    if accepted and not given:
        raise Refusal(406, f"the format is not given here; there are: {', '.join(MEDIA_TYPES.values())}")
    return tuple(dict.fromkeys(given)) or (Format.PLAIN,)


def _car_accepted(accepted: Sequence[tuple[str, Mapping[str, str]]]) -> Mapping[str, str]:
    return next((params for kind, params in accepted if kind == MEDIA_TYPES[Format.CAR]), {})


def _car_wish(params: Mapping[str, str], accepted: Mapping[str, str]) -> CarWish:
    def chosen(name: str, choices: Sequence[str]) -> str:
        value = params.get(f"car-{name}") or accepted.get(name) or choices[0]
        if value not in choices:
            raise Refusal(400, f"CAR {name} is one of: {', '.join(choices)}")
        return value

    chosen("version", ("1",))
    chosen("order", ("dfs", "unk"))
    scope, span = params.get("dag-scope") or "", params.get("entity-bytes")
    if scope not in ("", *DagScope):
        raise Refusal(400, f"dag-scope is one of: {', '.join(DagScope)}")
    if span:
        scope = scope or DagScope.ENTITY
    return CarWish(
        scope=DagScope(scope or DagScope.ALL),
        span=_span(span) if span else None,
        has_duplicates=chosen("dups", ("n", "y")) == "y",
    )


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise Refusal(400, "entity-bytes is FROM:TO, where TO may be *, and both may count from the end")
    first, last = int(match[1]), None if match[2] == "*" else int(match[2])
    if last is not None and (first < 0) == (last < 0) and last < first:
        raise Refusal(400, "entity-bytes ends before it begins")
    return Span(first, last)


def _filename(text: str | None) -> str | None:
    if not text:
        return None
    if len(text) > MAX_FILENAME_CHARS:
        raise Refusal(400, f"the filename has over {MAX_FILENAME_CHARS} characters")
    return "".join("_" if char in '"\\/' or not char.isprintable() else char for char in text)
