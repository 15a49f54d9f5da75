"""The core of the chat's terminal: lines and events in, effects out. It reads and prints nothing itself."""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from daemon.cli.text import clean

Json = Any
Style = Literal["answerer", "notice", "error", "plain"]


class Show(NamedTuple):
    """Print a line."""

    text: str
    style: Style = "plain"


class Write(NamedTuple):
    """Print a piece of the answer as it is, without a line end."""

    text: str


class Begin(NamedTuple):
    """An answer begins: print who answers."""

    label: str


class End(NamedTuple):
    """The answer ends: go to a new line if it does not end with one."""


class Draw(NamedTuple):
    """Show how far something is."""

    text: str


class Call(NamedTuple):
    """Run an operation of this chat; `then` makes effects of its result."""

    name: str
    params: dict[str, Json]
    then: "Callable[[Json], list[Effect]]"


class Stream(NamedTuple):
    """Run a streaming operation of this chat; each item goes to `event`. Ctrl-C stops it."""

    name: str
    params: dict[str, Json]


class Wipe(NamedTuple):
    """Clear the screen."""


class Leave(NamedTuple):
    """End the program."""


Effect = Show | Write | Begin | End | Draw | Call | Stream | Wipe | Leave

# name -> what follows it, what it does
COMMANDS: Final = {
    "/help": ("", "this list"),
    "/adapters": ("", "the adapters that can answer here; * marks the one that does"),
    "/use": ("WHO", "who answers next: NAME, NAME@VERSION, a CID, latest, best:METRIC:min or :max, or none (the base)"),
    "/model": ("", "the base model, and who answers"),
    "/loadrag": ("PATH", "answer from a folder or file, and name the sources"),
    "/ragstatus": ("", "what is loaded to answer from"),
    "/stats": ("", "tokens, speed, and the time of the last switch of adapter"),
    "/clear": ("", "forget what was said, and clear the screen"),
    "/exit": ("", "leave (Ctrl-D too)"),
    "/quit": ("", "the same"),
}
_KEYS: Final = "keys: Tab completes, Up and Ctrl-R bring back old lines, Ctrl-C stops an answer, Ctrl-D leaves"
PROMPT: Final = "you> "
_YES: Final = frozenset({"y", "yes"})
_NO: Final = frozenset({"", "n", "no"})
_MS: Final = 1000
_WHOLE_MILLIONS: Final = 10
_N_REASONS_SHOWN: Final = 8
_N_INVENTED_SHOWN: Final = 8


@dataclass
class Tally:
    """What the answers of this terminal cost."""

    n_answers: int = 0
    n_prompt_tokens: int = 0
    n_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    generating_s: float = 0.0
    n_switches: int = 0
    swap_s: float | None = None

    def add(self, finished: Json) -> None:
        """Count an answer."""
        self.n_answers += 1
        self.n_prompt_tokens += finished["n_prompt_tokens"]
        self.n_tokens += finished["n_tokens"]
        self.first_token_s = [*self.first_token_s[-99:], finished["first_token_s"]]
        self.generating_s += finished["total_s"]

    def lines(self) -> list[str]:
        """The tally for people."""
        if not self.n_answers:
            return ["no answer yet"]
        speed = self.n_tokens / self.generating_s if self.generating_s else 0.0
        mean_s = sum(self.first_token_s) / len(self.first_token_s)
        lines = [
            f"answers       {self.n_answers}",
            f"tokens        {self.n_tokens:,} written, {self.n_prompt_tokens:,} read",
            f"speed         {speed:.1f} tok/s",
            f"first token   {self.first_token_s[-1] * _MS:.0f} ms (mean {mean_s * _MS:.0f} ms)",
        ]
        if self.swap_s is not None:
            lines.append(f"adapter swap  {self.swap_s * _MS:.0f} ms the last time; {self.n_switches} in all")
        return lines


def label(adapter: Json) -> str:
    """What people call an adapter; None is the base model."""
    if adapter is None:
        return "base"
    return f"{clean(adapter['name'])} v{adapter['version']} by {clean(adapter['publisher'])}"


def _usage(name: str) -> Show:
    argument, text = COMMANDS[name]
    return Show(f"usage: {name} {argument}: {text}", "error")


def _size(n_params: int) -> str:
    if not n_params:
        return "served by the backend"
    millions = n_params / 1e6
    return f"{millions:,.0f} M parameters" if millions >= _WHOLE_MILLIONS else f"{millions:,.1f} M parameters"


def _place(source: Json) -> str:
    first, last = source["first_line"], source["last_line"]
    return f"{clean(source['path'])}, " + (f"line {first}" if first == last else f"lines {first}-{last}")


class Terminal:
    """One chat in a terminal. `status` is what `chat/open` gave."""

    def __init__(self, status: Json) -> None:
        self._status = status
        self._names: list[str] = []
        self._answering: Json = status["answering"]
        self._offered: Json = None  # asked about before the next line
        self._is_asked = False  # the line to come may be the answer to that
        self._skipped: dict[str, str] = {}  # reason -> an example
        self._has_begun = False
        self._is_silent = True  # nothing of the answer was written yet
        self.has_failed = False
        self.tally = Tally()

    def next_prompt(self) -> str:
        """What to print before the next line is read: the question about an adapter, once, or `PROMPT`."""
        self._is_asked = self._offered is not None
        offered, self._offered = self._offered, None
        return f"switch to {label(offered)}? [y/N] " if self._is_asked else PROMPT

    def greet(self) -> list[Effect]:
        """The first lines."""
        status = self._status
        return [
            Show(f"{clean(status['model'])} ({_size(status['n_params'])}), next: {label(status['next'])}", "notice"),
            Show("type a message, /help for commands; Ctrl-C stops an answer, Ctrl-D leaves", "notice"),
            Call("chat/adapters", {}, self._learn_names),
        ]

    def line(self, text: str) -> list[Effect]:
        """The user entered a line."""
        text = text.strip()
        was_asked, self._is_asked = self._is_asked, False
        if was_asked and text.lower() in _YES | _NO:
            return self._decide(text.lower() in _YES)
        if not text:
            return []
        if not text.startswith("/"):
            return self.message(text)
        word, _, rest = text.partition(" ")
        command = getattr(self, f"_do_{word[1:]}", None) if word in COMMANDS else None
        if command is None:
            near = [name for name in COMMANDS if name.startswith(word[:2])]
            hint = f"did you mean {near[0]}? " if near else ""
            return [Show(f"there is no {clean(word)}. {hint}/help lists the commands", "error")]
        effects: list[Effect] = command(rest.strip())
        return effects

    def message(self, text: str) -> list[Effect]:
        """The user says something to the model, be it a command's name."""
        self._has_begun, self._is_silent = False, True
        return [Draw(f"{clean(self._status['model'])} is reading ..."), Stream("chat/say", {"text": text})]

    def event(self, event: Json) -> list[Effect]:
        """An item of a stream came."""
        handle: Callable[[Json], list[Effect]] = getattr(self, f"_on_{event['type']}")
        return handle(event)

    def stopped(self) -> list[Effect]:
        """Ctrl-C ended a stream."""
        return [*self._end(), Show("stopped", "notice")]

    def failed(self, text: str, hint: str = "") -> list[Effect]:
        """An operation failed."""
        self.has_failed = True
        lines = [Show(f"error: {clean(text)}", "error"), *([Show(f"  {clean(hint)}", "error")] if hint else [])]
        return [*self._end(), *lines]

    def reopened(self, status: Json) -> list[Effect]:
        """The daemon had forgotten this chat; `status` is of a new one."""
        self._status, self._answering = status, status["answering"]
        self._offered = None
        text = "the daemon no longer had this chat (restarted, or idle for long): a new one begins, with nothing loaded"
        return [Show(text, "notice")]

    def interrupted(self) -> list[Effect]:
        """Ctrl-C at the prompt."""
        return [Show("to leave: /exit or Ctrl-D", "notice")]

    def arrived(self, adapter: Json) -> str:
        """A new adapter is here: one line for people. Asks before the next line where the settings say so."""
        if adapter is not None and adapter["name"] not in self._names:
            self._names.append(clean(adapter["name"]))
        match self._status["on_new_adapter"]:
            case "ask":
                self._offered = adapter
                return f"{label(adapter)} has arrived"
            case "tell":
                name = "none" if adapter is None else f"{clean(adapter['name'])}@{adapter['version']}"
                return f"{label(adapter)} has arrived; to switch: /use {name}"
            case _:
                return f"{label(adapter)} has arrived and answers from your next message on"

    def complete(self, line: str, word: str) -> list[str]:
        """What `word`, the last of `line`, may become."""
        if line == word:
            return [name + " " for name in COMMANDS if name.startswith(word)] if word.startswith("/") else []
        if line.startswith("/use "):
            return [name for name in ("latest", "none", *self._names) if name.startswith(word)]
        if line.startswith("/loadrag "):
            found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
            return [path + "/" if os.path.isdir(path) else path for path in found]
        return []

    # Commands

    def _do_help(self, _rest: str) -> list[Effect]:
        lines = [f"{name + ' ' + argument:<15}{text}" for name, (argument, text) in COMMANDS.items()]
        return [*(Show(line) for line in lines), Show(_KEYS, "notice")]

    def _do_clear(self, _rest: str) -> list[Effect]:
        return [Call("chat/clear", {}, lambda _: [Wipe(), Show("forgotten; the chat begins anew", "notice")])]

    def _do_exit(self, _rest: str) -> list[Effect]:
        return [Leave()]

    _do_quit = _do_exit

    def _do_adapters(self, _rest: str) -> list[Effect]:
        return [Call("chat/adapters", {}, self._list_adapters)]

    def _do_use(self, rest: str) -> list[Effect]:
        if not rest:
            return [_usage("/use")]
        return [Call("chat/use", {"adapter": rest}, self._used)]

    def _do_model(self, _rest: str) -> list[Effect]:
        return [Call("chat/status", {}, self._show_model)]

    def _do_loadrag(self, rest: str) -> list[Effect]:
        rest = rest.strip("'\"")
        if not rest:
            return [_usage("/loadrag")]
        return [Stream("chat/load", {"path": os.path.abspath(os.path.expanduser(rest))})]

    def _do_ragstatus(self, _rest: str) -> list[Effect]:
        return [Call("chat/status", {}, self._show_indexes)]

    def _do_stats(self, _rest: str) -> list[Effect]:
        return [Show(line) for line in self.tally.lines()]

    # Results

    def _learn_names(self, result: Json) -> list[Effect]:
        self._names = sorted({clean(adapter["name"]) for adapter in result["adapters"]})
        return []

    def _list_adapters(self, result: Json) -> list[Effect]:
        self._learn_names(result)
        if not result["adapters"]:
            return [Show("no adapter for this model is here yet. See what was heard of: covey adapter ls", "notice")]
        answering = self._answering and self._answering["cid"]
        return [
            Show(f"{'*' if one['cid'] == answering else ' '} {label(one)}  {clean(one['cid'])}")
            for one in result["adapters"]
        ]

    def _used(self, status: Json) -> list[Effect]:
        self._status = status
        self._offered = None
        return [Show(f"from the next message on: {label(status['next'])}", "notice")]

    def _show_model(self, status: Json) -> list[Effect]:
        return [
            Show(f"model      {clean(status['model'])}"),
            Show(f"size       {_size(status['n_params'])}"),
            Show(f"context    {status['context_tokens']:,} tokens"),
            Show(f"last       {label(status['answering']) if status['n_turns'] else '-'}"),
            Show(f"next       {label(status['next'])}"),
            Show(f"policy     {clean(status['policy'])}"),
        ]

    def _show_indexes(self, status: Json) -> list[Effect]:
        if not status["indexes"]:
            return [Show("nothing is loaded: /loadrag PATH", "notice")]
        return [
            Show(f"{clean(one['root'])}: {one['n_documents']:,} files, {one['n_chunks']:,} chunks")
            for one in status["indexes"]
        ]

    def _decide(self, is_yes: bool) -> list[Effect]:
        if is_yes:
            return [Call("chat/agree", {}, self._used)]
        return [Show(f"staying with {label(self._answering)}; to switch later: /use", "notice")]

    # Events

    def _on_token(self, event: Json) -> list[Effect]:
        text = clean(event["text"], keep_lines=True)
        if self._is_silent:
            text = text.lstrip()
        if not text:
            return []
        self._is_silent = False
        begin: list[Effect] = [] if self._has_begun else [Begin(self._short_label())]
        self._has_begun = True
        return [*begin, Write(text)]

    def _on_switched(self, event: Json) -> list[Effect]:
        self._answering = event["now"]
        self._offered = None
        self.tally.n_switches += 1
        self.tally.swap_s = event["swap_s"]
        text = f"now answering with {label(event['now'])} (was: {label(event['was'])}), {event['swap_s'] * _MS:.0f} ms"
        return [Show(text, "notice")]

    def _on_loading(self, event: Json) -> list[Effect]:
        return [Draw(f"loading {clean(event['model'])} ...")]

    def _on_offered(self, event: Json) -> list[Effect]:
        if self._status["on_new_adapter"] == "ask":
            self._offered = event["adapter"]
        return []

    def _on_refused(self, event: Json) -> list[Effect]:
        adapter, staying = label(event["adapter"]), label(event["staying"])
        return [Show(f"{adapter} cannot be used: {clean(event['reason'])}; staying with {staying}", "error")]

    def _on_cited(self, event: Json) -> list[Effect]:
        sources: Sequence[Json] = event["sources"]
        has_cited = any(one["cited"] for one in sources)
        lines = ["sources (* cited):" if has_cited else "sources (none cited):"]
        lines += [f"{'*' if one['cited'] else ' '} [{one['number']}] {_place(one)}" for one in sources]
        if event["invented"]:
            numbers = " ".join(f"[{number}]" for number in event["invented"][:_N_INVENTED_SHOWN])
            lines.append(f"the answer also cites {numbers}: there is no such source")
        return [*self._end(), *(Show(line, "notice") for line in lines)]

    def _on_finished(self, event: Json) -> list[Effect]:
        self.tally.add(event)
        notes: list[Effect] = [] if not self._is_silent else [Show("(an empty answer)", "notice")]
        effects = [*self._end(), *notes]
        if event["reason"] == "length":
            effects.append(Show(self._cut(event["n_tokens"]), "notice"))
        if event["n_forgotten_turns"]:
            n_turns = event["n_forgotten_turns"] // 2
            effects.append(Show(f"(the context is full: the {n_turns} oldest exchanges are forgotten)", "notice"))
        return effects

    def _cut(self, n_tokens: int) -> str:
        context_tokens = self._status["context_tokens"]
        if n_tokens >= context_tokens // 2:
            return (
                f"(cut at {n_tokens:,} tokens: half of this model's context of {context_tokens:,}, no answer is longer)"
            )
        return (
            f"(cut at {n_tokens:,} tokens; for longer answers: --max-tokens N, or covey config set chat.max_tokens N)"
        )

    def _on_failed(self, event: Json) -> list[Effect]:
        hint = "the next message starts it again; see why: covey logs" if event["code"] == "engine_died" else ""
        return self.failed(event["text"], hint)

    def _on_progress(self, event: Json) -> list[Effect]:
        return [Draw(f"{clean(event['step'])}: {event['n_done']:,} of {event['n_total']:,} {clean(event['unit'])}")]

    def _on_skipped(self, event: Json) -> list[Effect]:
        self._skipped.setdefault(event["reason"], event["path"])
        return []

    def _on_loaded(self, event: Json) -> list[Effect]:
        text = (
            f"{clean(event['root'])}: {event['n_documents']:,} files in {event['n_chunks']:,} chunks "
            f"({event['n_embedded']:,} read, {event['n_unchanged']:,} unchanged, {event['n_removed']:,} gone)"
        )
        reasons = sorted(event["skipped"].items(), key=lambda item: -item[1])
        skipped = [
            f"  skipped {n:,}: {clean(reason)} (e.g. {clean(self._skipped.get(reason, '...'))})"
            for reason, n in reasons[:_N_REASONS_SHOWN]
        ]
        self._skipped.clear()
        return [Show(line, "notice") for line in [text, *skipped]]

    def _short_label(self) -> str:
        adapter = self._answering
        return "base" if adapter is None else f"{clean(adapter['name'])} v{adapter['version']}"

    def _end(self) -> list[Effect]:
        was_begun, self._has_begun = self._has_begun, False
        return [End()] if was_begun else []
