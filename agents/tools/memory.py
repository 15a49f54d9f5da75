"""The agent's own memory: keep a fact for later runs, look for those that it has."""

from collections.abc import Mapping
from typing import Any, Final

from agents.tools.tool import Reach, Tool, ToolRefused, count_of, text_of

MAX_REMEMBERED_CHARS: Final = 1000
MAX_RECALLED: Final = 8


async def remember(given: Mapping[str, Any], reach: Reach) -> Any:
    """Keep a fact; at every attempt the same one, so it is there once."""
    text = text_of(given, "text", most=MAX_REMEMBERED_CHARS).strip()
    if reach.own is None or not text:
        raise ToolRefused("there is nothing to remember, or no memory to keep it in")
    return {"cid": str(await reach.own.remember(text))}


async def recall(given: Mapping[str, Any], reach: Reach) -> Any:
    """The facts that fit best."""
    question, n = text_of(given, "query"), count_of(given, "n", 4, MAX_RECALLED)
    if reach.own is None:
        raise ToolRefused("there is no memory to look in")
    return "\n".join(f"- {item.text[:MAX_REMEMBERED_CHARS]}" for item in await reach.own.recall(question, n))


TOOLS: Final = (
    Tool(
        name="memory-remember",
        about="Keeps a fact in your memory, for later.",
        takes={"text": "the fact, in a sentence that can be understood by itself"},
        use=remember,
    ),
    Tool(
        name="memory-recall",
        about="Looks in your memory for facts that fit a question.",
        takes={"query": "the question", "n": "how many facts"},
        use=recall,
    ),
)
