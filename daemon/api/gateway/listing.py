"""The page that shows a folder: one table, no script, everything escaped."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from html import escape
from typing import Final
from urllib.parse import quote

from storage.cid import Cid
from storage.unixfs import DirEntry

MAX_LISTED: Final = 10_000
_VERSION: Final = "1"  # of the page: it goes into the Etag, so a new form of it gets a new number

_STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}h1{font-size:1.3rem}nav{display:inline}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ccc;overflow-wrap:anywhere}"
    "td:last-child,th:last-child{text-align:right;white-space:nowrap}.cid{font-family:monospace;font-size:.85rem}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#111}a{color:#8ab4f8}}"
)
POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'"
)


def etag(cid: Cid) -> str:
    """The tag of a folder's page."""
    page = sha256(f"{_VERSION}|{_STYLE}".encode()).hexdigest()[:8]
    return f'"DirIndex-{page}_CID-{cid}"'


def page(namespace: str, root: str, segments: Sequence[str], cid: Cid, entries: Iterable[DirEntry]) -> Iterator[bytes]:
    """The page in pieces. Of a folder with very many entries the first are shown."""
    crumbs = _crumbs(namespace, root, segments)
    title = escape(_shown("/".join((namespace, root, *segments))))
    yield (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Index of /{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<style>{_STYLE}</style></head><body><main>\n"
        f'<h1>Index of <nav aria-label="Path">{crumbs}</nav></h1>\n'
        f'<p class="cid" translate="no">{cid}</p>\n<table><thead><tr><th scope="col">Name</th>'
        '<th scope="col">CID</th><th scope="col">Size with blocks</th></tr></thead><tbody>\n'
    ).encode()
    here = _href(namespace, root, *segments)
    if segments:
        above = _href(namespace, root, *segments[:-1])
        yield f'<tr><td><a href="{above}/">..</a></td><td></td><td></td></tr>\n'.encode()
    for n_shown, entry in enumerate(entries):
        if n_shown == MAX_LISTED:
            yield f"<tr><td>There are more than {MAX_LISTED} entries; the rest is not shown.</td></tr>\n".encode()
            break
        yield _row(here, entry)
    yield b"</tbody></table></main></body></html>\n"


def _crumbs(namespace: str, root: str, segments: Sequence[str]) -> str:
    links = []
    for depth in range(len(segments) + 1):
        name = escape(_shown((root, *segments)[depth]))
        links.append(f'<a href="{_href(namespace, root, *segments[:depth])}"><bdi>{name}</bdi></a>')
    return f"/{namespace}/" + "/".join(links)


def _row(here: str, entry: DirEntry) -> bytes:
    name = f"<bdi>{escape(_shown(entry.name))}</bdi>"
    if entry.name not in ("", ".", "..") and "/" not in entry.name:  # others no path can name
        name = f'<a href="{here}/{_quoted(entry.name)}">{name}</a>'
    by_cid = f"/ipfs/{entry.cid}?filename={_quoted(entry.name)}"
    size = "" if entry.dag_bytes is None else f"{entry.dag_bytes:,}"
    return (
        f'<tr><td>{name}</td><td><a class="cid" translate="no" href="{by_cid}">{entry.cid}</a></td>'
        f"<td>{size}</td></tr>\n"
    ).encode()


def _href(*parts: str) -> str:
    return "".join(f"/{_quoted(part)}" for part in parts)


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="")


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
