"""Which files of a folder are read, and their text. What is left out is said, with the reason."""

import errno
import html.parser
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from agents.retrieval.events import Skipped

MAX_FILES: Final = 10_000
MAX_ENTRIES: Final = 100_000
MAX_FILE_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 32

TEXT: Final = re.compile(
    r"\.(te?xt|md|markdown|rst|org|tex|log|[ct]sv|jsonl?|ndjson|ya?ml|toml|ini|cfg|conf|xml|x?html?|srt|vtt|sql|proto|css"
    r"|pyi?|m?js|tsx?|jsx|c|h|cc|[ch]pp|rs|go|java|kt|swift|rb|pl|php|lua|(ba|z)?sh|r|jl|scala|hs|ml|exs?|el)",
    re.IGNORECASE,
)
HTML: Final = frozenset({".html", ".htm", ".xhtml"})
_NAMES: Final = frozenset({"readme", "license", "licence", "copying", "authors", "changelog", "makefile", "dockerfile"})
_FOLDERS: Final = frozenset({"node_modules", "__pycache__", "venv", "site-packages"})


class Found(msgspec.Struct, frozen=True):
    """A file to read; `name` is its path below what was given."""

    name: str
    path: Path


def walk(root: Path) -> Iterator[Found | Skipped]:
    """The files at or below `root`, in order of their names.

    Hidden names are passed over in silence, symbolic links are not followed. A file that is given by itself is read
    whatever its extension. Raises: FileNotFoundError.
    """
    if root.is_file():
        yield Found(root.name, root)
        return
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", str(root))
    n_files = 0
    for n_entries, item in enumerate(_walk(root, "", 0), 1):
        n_files += isinstance(item, Found)
        if n_files > MAX_FILES or n_entries > MAX_ENTRIES:
            yield Skipped("...", f"the rest: more than {MAX_FILES} text files are not read; load subfolders one by one")
            return
        yield item


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[Found | Skipped]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(prefix or str(folder), error.strerror or "cannot be opened")
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            yield Skipped(name, "a symbolic link")
        elif entry.is_dir():
            if entry.name in _FOLDERS:
                yield Skipped(name + "/", "installed or generated files")
            elif depth >= MAX_DEPTH:
                yield Skipped(name + "/", f"deeper than {MAX_DEPTH} folders")
            else:
                yield from _walk(Path(entry.path), name + "/", depth + 1)
        elif not entry.is_file():
            yield Skipped(name, "not a regular file")
        elif not TEXT.fullmatch(Path(entry.name).suffix) and entry.name.lower() not in _NAMES:
            yield Skipped(name, f"not a text file by its name ({Path(entry.name).suffix or 'no extension'})")
        else:
            yield Found(name, Path(entry.path))


def read(found: Found) -> bytes | Skipped:
    """The bytes of a file, or why it is not read."""
    try:
        with found.path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return Skipped(found.name, error.strerror or "cannot be read")
    if len(data) > MAX_FILE_BYTES:
        return Skipped(found.name, f"larger than {MAX_FILE_BYTES >> 20} MiB")
    if b"\0" in data:
        return Skipped(found.name, "binary")
    return data


def text_of(found: Found, data: bytes) -> str | Skipped:
    """The text of a file; HTML loses its tags, scripts and styles and keeps its line numbers."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Skipped(found.name, "not UTF-8 text")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if found.path.suffix.lower() in HTML:
        text = strip_html(text)
    return text if text.strip() else Skipped(found.name, "empty")


def strip_html(text: str) -> str:
    """The readable text of a page; every line stays on its line."""
    stripper = _Stripper()
    stripper.feed(text)
    stripper.close()
    return "".join(stripper.parts)


class _Stripper(html.parser.HTMLParser):
    """Collects text; inside <script> and <style> only the line ends, so that lines keep their numbers."""

    _SILENT: Final = frozenset({"script", "style", "template"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0
        self._line = 1

    def _catch_up(self) -> None:
        """Add the line ends that were inside tags and comments."""
        line = self.getpos()[0]
        self.parts.append("\n" * (line - self._line))
        self._line = max(line, self._line)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Tags separate words."""
        self._catch_up()
        self._silent += tag in self._SILENT
        self.parts.append(" " if tag in {"br", "p", "div", "td", "th", "li", "tr"} else "")

    def handle_endtag(self, tag: str) -> None:
        """The end of a silent part ends its silence."""
        self._catch_up()
        if tag in self._SILENT and self._silent:
            self._silent -= 1

    def handle_data(self, data: str) -> None:
        """Text, or what is inside a silent part."""
        self._catch_up()
        self.parts.append("\n" * data.count("\n") if self._silent else data)
        self._line += data.count("\n")
