"""A reply as data, and the headers that several kinds of reply share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from urllib.parse import quote

from daemon.api.gateway.paths import Way
from daemon.api.gateway.refusal import Header, Refusal
from daemon.api.gateway.request import Asked

FOREVER: Final = "public, max-age=29030400, immutable"
A_WEEK: Final = "public, max-age=604800, stale-while-revalidate=2678400"
# Content is not ours: it runs no script, sends no form, and counts as an origin that is like no other.
CONTENT_POLICY: Final = (
    "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self' data:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_EXPOSED: Final = "Content-Length, Content-Range, Etag, X-Ipfs-Path, X-Ipfs-Roots"


@dataclass(slots=True)
class Reply:
    """What goes out. An empty piece of `body` is a step without output; without `n_bytes` the length is not known."""

    status: int
    headers: list[Header] = field(default_factory=list)
    body: Iterator[bytes] = field(default_factory=lambda: iter(()))
    n_bytes: int | None = None


def text_reply(status: int, text: str, headers: Sequence[Header] = ()) -> Reply:
    """One line for people."""
    body = f"{text}\n".encode("utf-8", "backslashreplace")
    plain = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    return Reply(status, [*plain, *common_headers(), *headers], iter((body,)), len(body))


def common_headers() -> list[Header]:
    """On every reply. What is served is for everybody, so any page may read it."""
    return [
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", CONTENT_POLICY),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Expose-Headers", _EXPOSED),
    ]


def path_headers(asked: Asked, way: Way, cache: str) -> list[Header]:
    """Where it was found, and for how long it may be kept."""
    return [
        ("X-Ipfs-Path", asked.path),
        ("X-Ipfs-Roots", ",".join(map(str, way.roots))),
        ("Cache-Control", cache),
        *common_headers(),
    ]


def etag_of(*parts: object) -> str:
    """A strong tag; what belongs to it beside a CID goes in as a hash."""
    first, *rest = map(str, parts)
    return f'"{first}"' if not rest else f'"{first}.{sha256("|".join(rest).encode()).hexdigest()[:16]}"'


def refuse_if_known(asked: Asked, etag: str, headers: Sequence[Header]) -> None:
    """Raises: Refusal (304) where the client has this already; the comparison is the weak one of RFC 9110."""
    known = asked.if_none_match
    if known is None:
        return
    tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
    if "*" in tags or etag.removeprefix("W/") in tags:
        kept = [header for header in headers if not header[0].startswith("Content-")]
        raise Refusal(304, "", [("Etag", etag), *kept])


def disposition(asked: Asked, default: str | None, *, is_attachment: bool) -> list[Header]:
    """Content-Disposition, where one is due: asked for by name or as a download, or never to be shown."""
    name = asked.filename or default
    if not (is_attachment or asked.is_download or asked.filename):
        return []
    value = "attachment" if is_attachment or asked.is_download else "inline"
    if name:
        ascii_name = "".join(char if " " <= char <= "~" else "_" for char in name)
        value += f'; filename="{ascii_name}"'
        if ascii_name != name:
            value += f"; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'), safe='')}"
    return [("Content-Disposition", value)]
