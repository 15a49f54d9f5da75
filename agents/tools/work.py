"""The workspace and the node's content: search what was said, get and put content, ask another agent."""

from collections.abc import Mapping
from typing import Any, Final

import trio

from agents.tools.ranking import Passage, best
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, count_of, text_of
from protocols.workspaces.entries import Commit, Put, Say
from storage.cid import Cid
from storage.errors import InvalidCid

MAX_GOT_BYTES: Final = 8000
MAX_SHOWN_CHARS: Final = 1200
MAX_ENTRIES: Final = 20_000


async def search(given: Mapping[str, Any], reach: Reach) -> Any:
    """The entries that fit best."""
    words, n = text_of(given, "query"), count_of(given, "n", 3, 8)
    if reach.space is None:
        raise ToolRefused("there is no workspace to search in")
    found = [
        Passage(str(node.id), node.height, text[:MAX_SHOWN_CHARS])
        for node in list(reach.space.history)[-MAX_ENTRIES:]
        if not reach.space.code(node) and (text := _said(node.says))
    ]
    fitting = await trio.to_thread.run_sync(best, words, found, n)
    return "\n\n".join(f"[{one.where}]\n{one.text}" for _, one in fitting)


def _said(says: Any) -> str:
    match says:
        case Say():
            return str(says.text)
        case Put():
            return says.value if isinstance(says.value, str) else ""
        case Commit():
            value = says.output.get("value") if isinstance(says.output, dict) else says.output
            return value if isinstance(value, str) else ""
        case _:
            return ""


async def get(given: Mapping[str, Any], reach: Reach) -> Any:
    """Content as text."""
    if reach.get is None:
        raise ToolRefused("no content can be had here")
    try:
        cid = Cid.parse(text_of(given, "cid", most=128))
    except InvalidCid as error:
        raise ToolFailed(str(error)) from None
    data = await reach.get(cid, MAX_GOT_BYTES)
    if b"\0" in data:
        raise ToolFailed(f"{cid} is no text")
    return data.decode(errors="replace")


async def put(given: Mapping[str, Any], reach: Reach) -> Any:
    """Content out of a text; the same text has the same CID at every attempt."""
    if reach.put is None:
        raise ToolRefused("no content can be put here")
    return {"cid": str(await reach.put(text_of(given, "text", most=30_000).encode()))}


async def ask(given: Mapping[str, Any], reach: Reach) -> Any:
    """What another agent answers."""
    agent, prompt = text_of(given, "agent", most=64), text_of(given, "prompt", most=8000)
    if agent not in reach.policy.asks:
        raise ToolRefused(f"the agent may not ask {agent!r} (policy.asks)")
    if reach.ask is None:
        raise ToolRefused("nobody can be asked here")
    return await reach.ask(agent, prompt, reach.key)


TOOLS: Final = (
    Tool(
        name="workspace-search",
        about="Finds the entries of the workspace that fit some words best.",
        takes={"query": "the words", "n": "how many entries"},
        use=search,
    ),
    Tool(name="content-get", about="Reads content by its CID.", takes={"cid": "its CID"}, use=get),
    Tool(name="content-put", about="Stores a text; returns its CID.", takes={"text": "the text"}, use=put),
    Tool(
        name="agent-ask",
        about="Asks another agent.",
        takes={"agent": "its name", "prompt": "what to ask it"},
        use=ask,
    ),
)
