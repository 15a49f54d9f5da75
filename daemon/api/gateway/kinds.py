"""What kind of content a file is: by its name, else by its first bytes. No more than these is believed or read."""

import mimetypes
from typing import Final

SNIFFED_BYTES: Final = 512
UNKNOWN: Final = "application/octet-stream"

_TYPES: Final = mimetypes.MimeTypes(())  # Python's own table: the machine's files must not change what is served
_TYPES.add_type("text/markdown", ".md")
_TYPES.add_type("application/wasm", ".wasm")
_TYPES.add_type("image/webp", ".webp")
_TEXTUAL: Final = ("application/javascript", "application/json", "application/xml", "image/svg+xml")
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
)
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\r\x0c\x1b")


def content_type(name: str | None, head: bytes) -> str:
    """The type of a file with this name, if it has one, and these first bytes."""
    kind, encoding = _TYPES.guess_type(name) if name and "/" not in name else (None, None)
    if encoding == "gzip":
        return "application/gzip"
    if kind is None or encoding is not None:
        return _sniffed(head) if kind is None and encoding is None else UNKNOWN
    is_text = kind.startswith("text/") or kind in _TEXTUAL
    return f"{kind}; charset=utf-8" if is_text else kind


def _sniffed(head: bytes) -> str:
    head = head[:SNIFFED_BYTES]
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "text/html; charset=utf-8"
    return "text/plain; charset=utf-8" if _is_text(head) else UNKNOWN


def _is_text(head: bytes) -> bool:
    for n_cut in range(4):  # the last character may be cut in two
        try:
            head[: len(head) - n_cut].decode()
        except UnicodeDecodeError:
            continue
        return not _CONTROLS.intersection(head)
    return False
