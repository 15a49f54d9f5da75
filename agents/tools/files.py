"""Files of one folder: list, read, search, write. Nothing leads out of it."""

from collections.abc import Mapping
from typing import Any, Final

import trio

from agents.tools import confined
from agents.tools.ranking import best, passages_of
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, count_of, text_of

MAX_READ_CHARS: Final = 8000
MAX_SEARCHED_BYTES: Final = 16 << 20
MAX_FILE_BYTES: Final = 1 << 20
MAX_LISTED: Final = 200
TEXTS: Final = (".md", ".txt", ".rst", ".toml", ".py", ".json", ".csv")


def _root(reach: Reach) -> str:
    if not reach.policy.folder:
        raise ToolRefused("the agent has no folder (policy.folder)")
    return reach.policy.folder


async def listed(given: Mapping[str, Any], reach: Reach) -> Any:
    """What is there."""
    root, path = _root(reach), text_of(given, "path", "")

    def look() -> list[Any]:
        found = []
        for name, n_bytes in confined.files(root, path):
            found.append({"path": name, "n_bytes": n_bytes})
            if len(found) >= MAX_LISTED:
                break
        return sorted(found, key=lambda row: str(row["path"]))

    return await trio.to_thread.run_sync(look)


async def read(given: Mapping[str, Any], reach: Reach) -> Any:
    """A file's text."""
    root, path = _root(reach), text_of(given, "path")
    data = await trio.to_thread.run_sync(confined.read, root, path, MAX_READ_CHARS * 4)
    return _text(data, path)[:MAX_READ_CHARS]


def _text(data: bytes, path: str) -> str:
    if b"\0" in data:
        raise ToolFailed(f"{path} is no text")
    return data.decode(errors="replace")


async def search(given: Mapping[str, Any], reach: Reach) -> Any:
    """The passages that fit best."""
    root, words, n = _root(reach), text_of(given, "query"), count_of(given, "n", 3, 8)

    def look() -> str:
        passages, n_bytes = [], 0
        for name, size in sorted(confined.files(root)):
            if not name.endswith(TEXTS) or size > MAX_FILE_BYTES:
                continue
            n_bytes += size
            if n_bytes > MAX_SEARCHED_BYTES:
                raise ToolFailed(f"the folder has over {MAX_SEARCHED_BYTES >> 20} MiB of texts: too much to search")
            passages += passages_of(name, _text(confined.read(root, name, MAX_FILE_BYTES), name))
        return "\n\n".join(f"[{one.where}, line {one.line}]\n{one.text}" for _, one in best(words, passages, n))

    return await trio.to_thread.run_sync(look)


async def write(given: Mapping[str, Any], reach: Reach) -> Any:
    """Put a text into a file."""
    root, path, text = _root(reach), text_of(given, "path"), text_of(given, "text", most=30_000)
    if not reach.policy.may_write:
        raise ToolRefused("the agent may not write (policy.may_write)")
    await trio.to_thread.run_sync(confined.write, root, path, text.encode())
    return {"path": path, "n_bytes": len(text.encode())}


TOOLS: Final = (
    Tool(name="file-list", about="Lists the files.", takes={"path": "a folder, or nothing for all"}, use=listed),
    Tool(name="file-read", about="Reads a file.", takes={"path": "the file"}, use=read),
    Tool(
        name="file-search",
        about="Finds the passages of all files that fit some words best.",
        takes={"query": "the words", "n": "how many passages"},
        use=search,
    ),
    Tool(name="file-write", about="Writes a file.", takes={"path": "the file", "text": "its text"}, use=write),
)
