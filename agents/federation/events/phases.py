"""The phases of a round, as a table: what an observer with a book sees, and by which event it goes on.

`python -m agents.federation.events.phases` writes the table and its diagram into FEDERATION.md; a test compares them.
"""

from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

from agents.federation.events.book import Book
from agents.federation.events.secure_stages import Stage, Stages
from protocols.rounds import Close

Phase = Literal["unknown", "waiting", "keying", "sharing", "training", "closing", "final", "void", "settled"]


class Step(NamedTuple):
    """From one phase to another, by an event; and who says it."""

    phase: Phase
    event: str
    then: Phase
    by: str


TABLE: Final = (
    Step("unknown", "start, or the result before", "waiting", "the plan's author; over half of those selected before"),
    Step("waiting", "open", "training", "the coordinator of the term"),
    Step("waiting", "open, under secure aggregation", "keying", "the coordinator of the term"),
    Step("keying", "keys", "keying", "the selected, each its own"),
    Step("keying", "gather", "sharing", "the coordinator, of all keys or of enough after a lease"),
    Step("sharing", "shares", "sharing", "those whose keys were gathered, for each other"),
    Step("sharing", "gather", "training", "the coordinator, of all shares or of enough after a lease"),
    Step("training", "complain", "sharing", "who was dealt false shares; the list is made again without their dealer"),
    Step("keying", "close", "closing", "the coordinator, void, at the deadline with too few keys"),
    Step("sharing", "close", "closing", "the coordinator, void, at the deadline with too few shares"),
    Step("training", "submit, receipt", "training", "the selected; the coordinator"),
    Step("training", "open, promise", "training", "a deputy, after a lease of silence; the selected"),
    Step("training", "close", "closing", "the coordinator of the highest term"),
    Step("closing", "open, promise", "training", "a deputy, when no majority countersigned within a lease"),
    Step("closing", "vote", "final", "over half of the selected; of masked updates, as many as unmask them"),
    Step("closing", "vote", "void", "over half of the selected, for a close without submissions"),
    Step("final", "unmask", "final", "those whose updates are in the sum, each for this close alone"),
    Step("final", "result", "settled", "each member's own computation, or over half of the selected alike"),
)

STAGES: Final[dict[Stage, Phase]] = {"keys": "keying", "shares": "sharing", "masked": "training"}
MARKS: Final = ("<!-- phases -->", "<!-- /phases -->")


def phase_of(book: Book, number: int) -> Phase:
    """Where a round stands, by what is known."""
    if book.selected(number) is None:
        return "unknown"
    if (final := book.final(number)) is not None:
        if cast(Close, final.event).void:
            return "void"
        return "settled" if book.result(number) is not None else "final"
    opened = book.opened(number)
    if not opened:
        return "waiting"
    if max(opened) in book.closes(number):
        return "closing"
    return STAGES[Stages(book, number).stage()] if book.secure is not None else "training"


def text() -> str:
    """The table and its diagram, in Markdown."""
    rows = "\n".join(f"| {step.phase} | {step.event} | {step.then} | {step.by} |" for step in TABLE)
    edges = "\n".join(f"    {step.phase} --> {step.then}: {step.event}" for step in TABLE)
    return (
        f"| phase | event | then | said by |\n| --- | --- | --- | --- |\n{rows}\n\n"
        f"```mermaid\nstateDiagram-v2\n    [*] --> unknown\n{edges}\n    settled --> [*]\n    void --> [*]\n```"
    )


def written_into(document: str) -> str:
    """The document with the table and diagram of now between its marks."""
    before, rest = document.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{text()}\n{MARKS[1]}{after}"


def main() -> None:
    """Write them."""
    path = Path(__file__).parents[2] / "FEDERATION.md"
    path.write_text(written_into(path.read_text()))


if __name__ == "__main__":
    main()
