"""`covey chat`: the shell around the core (chat_core) and the terminal (chat_console). Chats live in the daemon."""

import io
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from daemon.api import faults
from daemon.cli import client
from daemon.cli.chat_console import Interrupts, Screen, without_echo
from daemon.cli.chat_core import Call, Effect, Leave, Show, Stream, Terminal
from daemon.cli.options import json_option
from daemon.cli.text import json_text
from daemon.paths import Home

if TYPE_CHECKING:
    from daemon.cli.chat_editor import LineEditor

RETRY_S: Final = 2.0
_HISTORY: Final = "chat_history"
_UNKNOWN_CHAT: Final = "unknown_chat"

Json = Any


class Link:
    """A chat on the daemon. When the daemon has forgotten it, a new one is opened and `has_new` says so once."""

    def __init__(self, home: Home, opening: dict[str, Json]) -> None:
        self._home = home
        self._opening = opening
        self.wait: client.Wait | None = None  # how to wait for what `call` and `stream` bring
        self.has_new = False
        self.status: Json = self._open()

    def _open(self) -> Json:
        return client.call(self._home, "chat/open", self._opening)

    @property
    def chat(self) -> str:
        """The chat's id."""
        return str(self.status["chat"])

    def call(self, name: str, params: Json) -> Json:
        """Run an operation of this chat. Raises: NotRunning, Refused."""
        try:
            return client.call(self._home, name, {"chat": self.chat, **params}, wait=self.wait)
        except client.Refused as error:
            self._reopen(error)
            return client.call(self._home, name, {"chat": self.chat, **params}, wait=self.wait)

    def stream(self, name: str, params: Json) -> Iterator[Json]:
        """Run a streaming operation of this chat. Raises: NotRunning, Refused."""
        try:
            yield from client.stream(self._home, name, {"chat": self.chat, **params}, wait=self.wait)
        except client.Refused as error:
            self._reopen(error)
            yield from client.stream(self._home, name, {"chat": self.chat, **params}, wait=self.wait)

    def _reopen(self, error: client.Refused) -> None:
        if error.fault.code != _UNKNOWN_CHAT:
            raise error
        self.status = self._open()
        self.has_new = True

    def news(self) -> Iterator[Json]:
        """The adapters that arrive for this chat. Raises: NotRunning, Refused, OSError."""
        return client.stream(self._home, "chat/news", {"chat": self.chat})

    def close(self) -> None:
        """End the chat."""
        with suppress(client.NotRunning, client.Refused, OSError):
            client.call(self._home, "chat/close", {"chat": self.chat}, timeout_s=RETRY_S)


class Runner:
    """Carries out effects: asks the daemon, prints, and feeds what comes back to the core."""

    def __init__(self, link: Link, terminal: Terminal, screen: Screen, *, as_json: bool) -> None:
        self._link = link
        self._terminal = terminal
        self._screen = screen
        self._as_json = as_json

    def run(self, effects: list[Effect]) -> bool:
        """Carry out effects and what follows from them; False once one was to leave. Raises: NotRunning, Refused."""
        queue = deque(effects)
        while queue:
            match queue.popleft():
                case Leave():
                    return False
                case Call(name, params, then):
                    result = self._link.call(name, params)
                    self._emit({"type": "result", "operation": name, "result": result})
                    queue.extendleft(reversed(self._news_of_link() + then(result)))
                case Stream(name, params):
                    self._stream(name, params)
                case effect:
                    self._print([effect])
        return True

    def _stream(self, name: str, params: Json) -> None:
        # Closing the stream closes the connection, which stops the work in the daemon.
        with closing(self._link.stream(name, params)) as events:  # type: ignore[type-var]  # it is a generator
            for event in events:
                self._emit(event)
                self._print([*self._news_of_link(), *self._terminal.event(event)])

    def _news_of_link(self) -> list[Effect]:
        if not self._link.has_new:
            return []
        self._link.has_new = False
        return self._terminal.reopened(self._link.status)

    def tell(self, error: Exception) -> None:
        """Say that an operation failed."""
        fault = error.fault if isinstance(error, client.Refused) else faults.Fault("not_running", str(error))
        self._emit({"error": {"code": fault.code, "text": fault.text, "hint": fault.hint}})
        self._print(self._terminal.failed(fault.text, fault.hint))

    def tell_arrived(self, adapter: Json) -> None:
        """Say that an adapter is here."""
        self._print([Show(self._terminal.arrived(adapter), "notice")])

    def stop(self) -> None:
        """Say that Ctrl-C stopped an answer."""
        self._emit({"type": "stopped"})
        self._print(self._terminal.stopped())

    def _emit(self, item: Json) -> None:
        if self._as_json:
            print(json_text(item, sys.stdout), flush=True)

    def _print(self, effects: list[Effect]) -> None:
        if not self._as_json:
            for effect in effects:
                self._screen.perform(effect)


@click.command
@click.option(
    "--adapter",
    metavar="WHO",
    default="latest",
    show_default=True,
    help="Who answers: latest, none (the base model), NAME, NAME@VERSION, a CID, or best:METRIC:min or :max.",
)
@click.option("--on", metavar="PEER", help="Who answers, where it is not this node: a peer's id, or its name here.")
@click.option("--model", metavar="NAME", help="The base model; by default the node's.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1), help="The longest answer, in tokens.")
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(0, 10),
    default=0.0,
    show_default=True,
    help="How freely tokens are drawn; at 0 the same answer each time.",
)
@click.option(
    "--timeout-s",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="The longest time for an answer, the loading of the model included.",
)
@click.option("--once", "-p", metavar="PROMPT", help="Answer one prompt and end.")
@click.pass_obj
def chat(home: Home, /, once: str | None, as_json: bool, **opening: Json) -> int:
    """Talk to the model on this node, with its newest adapter.

    On a terminal: a conversation; /help lists its commands. An adapter that arrives answers from the next message on
    (or asks first: covey config set chat.on_new_adapter ask). With --on, a peer that allows it answers, with the
    adapters that it has. From a pipe: each line is answered, errors go to stderr.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    link = Link(home, {name: value for name, value in opening.items() if value is not None})
    terminal = Terminal(link.status)
    is_terminal = sys.stdout.isatty() and not as_json
    is_conversation = is_terminal and sys.stdin.isatty() and once is None
    runner = Runner(link, terminal, Screen(is_terminal=is_terminal), as_json=as_json)
    try:
        if is_conversation:
            _converse(home, link, terminal, runner)
        elif once is not None:
            runner.run(terminal.message(once))
        else:
            _read_lines(terminal, runner)
    finally:
        link.close()
    return faults.EXIT_FAILED if terminal.has_failed and not is_conversation else faults.EXIT_OK


def _read_lines(terminal: Terminal, runner: Runner) -> None:
    """Lines from a pipe, until its end or /exit; an error of one does not keep the others from their answers."""
    for line in sys.stdin:
        try:
            if not runner.run(terminal.line(line)):
                return
        except (client.Refused, client.NotRunning) as error:
            runner.tell(error)


def _converse(home: Home, link: Link, terminal: Terminal, runner: Runner) -> None:
    """The terminal's loop: Ctrl-C stops an answer, Ctrl-D leaves."""
    from daemon.cli.chat_editor import LineEditor

    editor = LineEditor(home.root / _HISTORY, terminal.complete, runner.tell_arrived)
    threading.Thread(target=_follow, args=(link, editor), daemon=True).start()
    with Interrupts() as interrupts:
        link.wait = interrupts.wait
        effects = terminal.greet()
        while _carry_out(effects, runner, interrupts):
            editor.show_news()
            try:
                effects = terminal.line(editor.read(terminal.next_prompt()))
            except EOFError:
                return
            except KeyboardInterrupt:
                effects = terminal.interrupted()


def _carry_out(effects: list[Effect], runner: Runner, interrupts: Interrupts) -> bool:
    try:
        with without_echo(), interrupts.heard():
            return runner.run(effects)
    except KeyboardInterrupt:
        runner.stop()
    except (client.Refused, client.NotRunning) as error:
        runner.tell(error)
    return True


def _follow(link: Link, editor: "LineEditor") -> None:
    """Bring the news of arriving adapters, for ever; the daemon may come and go."""
    while True:
        with suppress(client.Refused, client.NotRunning, OSError):
            for item in link.news():
                editor.bring(item["adapter"])
        time.sleep(RETRY_S)


chat.params.append(json_option())
