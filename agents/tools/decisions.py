"""Decisions of the workspace: see what is put to the vote, propose, vote; in the name of the agent's host."""

from collections.abc import Mapping
from typing import Any, Final, cast

from agents.roster.deciding import Deciding
from agents.tools.tool import Reach, Tool, ToolFailed, ToolRefused, count_of, text_of
from protocols.workspaces.entries import MAX_OPTIONS, Propose

MAX_QUESTION_CHARS: Final = 4096
MAX_OPTION_CHARS: Final = 200
MAX_KEY_CHARS: Final = 128
MAX_MINUTES: Final = 60 * 24 * 30
MAX_SHOWN: Final = 20
MAX_SHOWN_CHARS: Final = 500


def _say(reach: Reach) -> Deciding:
    if not reach.policy.decides or reach.decisions is None:
        raise ToolRefused("the agent decides nothing (policy.decides)")
    return reach.decisions


async def listed(_given: Mapping[str, Any], reach: Reach) -> Any:
    """What is open."""
    rows = []
    for node in _say(reach).open()[:MAX_SHOWN]:
        says = cast(Propose, node.says)
        options = list(says.options)
        rows.append({"id": str(node.id), "key": says.key, "text": says.text[:MAX_SHOWN_CHARS], "options": options})
    return rows


async def propose(given: Mapping[str, Any], reach: Reach) -> Any:
    """Its id; the same words are proposed once."""
    key, text = text_of(given, "key", most=MAX_KEY_CHARS), text_of(given, "text", most=MAX_QUESTION_CHARS)
    options, minutes = given.get("options", ["yes", "no"]), count_of(given, "minutes", 60, MAX_MINUTES)
    if not isinstance(options, list) or not 1 < len(options) <= MAX_OPTIONS:
        raise ToolFailed(f"`options` is a list of 2 to {MAX_OPTIONS} texts")
    if not all(isinstance(option, str) and 0 < len(option) <= MAX_OPTION_CHARS for option in options):
        raise ToolFailed(f"each of `options` is a text of {MAX_OPTION_CHARS} characters at most")
    node = await _say(reach).propose(key, text, options, minutes)
    return {"id": str(node.id)}


async def vote(given: Mapping[str, Any], reach: Reach) -> Any:
    """On what."""
    proposal, option = text_of(given, "proposal", most=128), text_of(given, "option", most=MAX_OPTION_CHARS)
    node = await _say(reach).vote(proposal, option)
    return {"id": str(node.id), "option": option}


TOOLS: Final = (
    Tool(name="decision-list", about="Lists what is put to the vote and is yours to decide.", takes={}, use=listed),
    Tool(
        name="decision-propose",
        about="Puts something to the vote of the workspace.",
        takes={
            "key": "what it belongs to",
            "text": "the question",
            "options": "a list of answers; yes and no without it",
            "minutes": "until it is counted",
        },
        use=propose,
    ),
    Tool(
        name="decision-vote",
        about="Votes; a later vote takes the place of an earlier one.",
        takes={"proposal": "its id", "option": "one of its options"},
        use=vote,
    ),
)
