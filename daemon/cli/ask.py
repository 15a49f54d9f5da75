"""`covey ask`: one question, the answer on stdout as it comes, everything else on stderr."""

import sys
from typing import Any, Final

import click

from daemon.api.faults import Fault
from daemon.api.operation import Operation
from daemon.api.operations.ask import OPERATIONS as _OPERATIONS
from daemon.api.operations.ask import USUAL_TOKENS
from daemon.api.operations.chat import MAX_QUESTION_CHARS
from daemon.cli import client
from daemon.cli.generate import command_of
from daemon.cli.text import clean, json_text
from daemon.paths import Home

_STDIN: Final = "-"

Json = Any


def _ask(home: Home, operation: Operation, params: dict[str, Json], *, as_json: bool) -> None:
    """Ask, and show the answer. Raises: Refused, with what the daemon or the peer said."""
    if params["text"] == _STDIN:
        params = {**params, "text": sys.stdin.read(MAX_QUESTION_CHARS + 1)}
    if len(params["text"]) > MAX_QUESTION_CHARS:
        raise click.UsageError(f"the question has over {MAX_QUESTION_CHARS:,} characters: no model reads that much")
    if not params["text"].strip():
        raise click.UsageError("the question is empty")
    answer = _Answer(params.get("max_tokens", USUAL_TOKENS))
    try:
        for event in client.stream(home, operation.name, params):
            if as_json:
                print(json_text(event, sys.stdout), flush=True)
            else:
                answer.show(event)
            if event["type"] == "failed":
                raise client.Refused(Fault(str(event["code"]), str(event["text"])))
    finally:
        answer.end()


class _Answer:
    """What was printed of an answer: whether its line is still open."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._is_open = False

    def show(self, event: Json) -> None:
        """Print one event."""
        match event["type"]:
            case "token":
                text = clean(event["text"], keep_lines=True)
                sys.stdout.write(text)
                sys.stdout.flush()
                self._is_open = not text.endswith("\n") if text else self._is_open
            case "loading" if sys.stderr.isatty():
                self._tell(f"loading {clean(event['model'])} ...")
            case "refused":
                self._tell(f"{clean(event['adapter']['name'])} cannot be used: {clean(event['reason'])}")
            case "finished":
                self.end()
                if event["reason"] == "length":
                    why = "no answer is longer than half of the model's context"
                    if event["n_tokens"] >= self._max_tokens:
                        why = "for a longer answer: --max-tokens N"
                    self._tell(f"(cut at {event['n_tokens']:,} tokens; {why})")
                if event["cache"] != "none":
                    self._tell(_from_cache(event))
            case "recorded":
                record = clean(event["record"])
                self._tell(f"record {record}; to check it: covey record verify {record}")

    def end(self) -> None:
        """Close the line."""
        if self._is_open:
            print(flush=True)
            self._is_open = False

    def _tell(self, text: str) -> None:
        self.end()
        print(text, file=sys.stderr, flush=True)


def _from_cache(event: Json) -> str:
    if event["cache"] == "semantic" and event["distance"] is not None:
        far = f"a distance of {event['distance']:.3f}; up to {event['threshold']:g} is allowed"
        return f"(answered before, to a similar question at {far})"
    return "(answered before, to the same question)"


ask = command_of(next(one for one in _OPERATIONS if one.verb == "say"), _ask)
ask.name = "ask"
