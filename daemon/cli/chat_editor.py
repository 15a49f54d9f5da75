"""The line that the user types: editing, completion, history, and news that appears above it."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.history import FileHistory
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

if TYPE_CHECKING:
    from prompt_toolkit.document import Document

Complete = Callable[[str, str], list[str]]


class LineEditor:
    """Reads lines. `bring` may be called from any thread; all else belongs to the main one.

    Args:
        history: the file that lines are kept in, for this and later chats.
        complete: what the last word of a line may become, given the line and the word.
        show: prints a piece of news. Called in the main thread, never while a line stands on the screen.
    """

    def __init__(self, history: Path, complete: Complete, show: Callable[[Any], None]) -> None:
        os.close(os.open(history, os.O_RDWR | os.O_CREAT, 0o600))
        self._news: deque[Any] = deque()
        self._show = show
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(history),
            completer=_Words(complete),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            enable_suspend=True,
            output=_output(),
        )

    def read(self, prompt: str) -> str:
        """One line. Raises: EOFError (Ctrl-D), KeyboardInterrupt (Ctrl-C, which is a key like others here)."""
        return self._session.prompt([("bold ansicyan", prompt)], pre_run=self._begin, handle_sigint=False)

    def bring(self, item: Any) -> None:
        """Have news shown: above the line that is being typed, or else before the next one."""
        self._news.append(item)
        # A loop is there before `_begin` looks for news: what that does not see, this wakes the loop for.
        loop = self._session.app.loop
        if loop is not None:
            with suppress(RuntimeError):  # the line was entered just now
                loop.call_soon_threadsafe(self._begin)

    def show_news(self) -> None:
        """Show the news that came while no line was being typed."""
        while self._news:
            self._show(self._news.popleft())

    def _begin(self) -> None:
        if self._news:
            self._session.app.create_background_task(self._show_above())

    async def _show_above(self) -> None:
        async with in_terminal():
            self.show_news()


def _output() -> Vt100_Output:
    made = Vt100_Output.from_pty(
        sys.stdout, term=os.environ.get("TERM"), default_color_depth=ColorDepth.from_env(), enable_bell=False
    )
    made.enable_cpr = False  # terminals that do not say where the cursor is would get a warning and a wait
    return made


class _Words(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: "Document", complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the word before the cursor may become."""
        line = document.text_before_cursor.lstrip()
        word = line.rpartition(" ")[2]
        for text in self._complete(line, word):
            yield Completion(text, start_position=-len(word))
