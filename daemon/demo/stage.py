"""The stage of the demo: actors with a home and a daemon each, their commands shown as they are typed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self

from daemon.cli.text import clean, json_text

COVEY: Final = (sys.executable, "-m", "daemon.cli.main")
COLOURS: Final = {"ada": "35", "bob": "36", "cleo": "33", "dan": "34"}
EVENT_LIMIT_S: Final = 120.0
ANSWER_LIMIT_S: Final = 300.0
DOWN_LIMIT_S: Final = 15.0
LOG_LINES_SHOWN: Final = 15

Json = Any


class StepFailed(Exception):
    """A step of the demo did not hold."""


class Stage:
    """A temporary folder, the actors, and what the audience sees. Leaving it stops every daemon."""

    def __init__(self, *, keep: bool, as_json: bool) -> None:
        self._keep = keep
        self.as_json = as_json
        self.folder = Path(tempfile.mkdtemp(prefix="covey-demo-"))
        self._actors: list[Actor] = []
        self._has_colour = sys.stdout.isatty() and not as_json
        self._n_steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            actor.leave()
        if self._keep:
            self.say(f"\nthe homes stay in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def enters(self, name: str) -> "Actor":
        """A new actor with an empty home."""
        actor = Actor(name, self)
        self._actors.append(actor)
        return actor

    def paint(self, text: str, code: str) -> str:
        """`text` in a colour, on terminals."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._has_colour else text

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.as_json:
            print(text, flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[dict[str, Json]]:
        """A step of the story; what is put into the dict is told with it in JSON."""
        self._n_steps += 1
        self.say("\n" + self.paint(f"{self._n_steps}. {title}", "1"))
        found: dict[str, Json] = {}
        began_s = perf_counter()
        yield found
        took_s = perf_counter() - began_s
        if self.as_json:
            print(json_text({"step": title, "took_s": round(took_s, 3), **found}, sys.stdout), flush=True)
        else:
            print(self.paint(f"   ok, {took_s:.1f} s", "32"), flush=True)

    def fail(self, failure: StepFailed) -> None:
        """Say which step failed and what the daemons last said."""
        if self.as_json:
            print(json_text({"error": {"code": "step_failed", "text": str(failure)}}, sys.stdout))
            return
        print(self.paint(f"   failed: {clean(str(failure), keep_lines=True)}", "31"), file=sys.stderr)
        for actor in self._actors:
            print(f"the end of {actor.name}'s log:\n{clean(actor.log_tail(), keep_lines=True)}", file=sys.stderr)
        print("Run it again with --keep to look at the homes; `covey doctor` looks at this machine.", file=sys.stderr)


class Actor:
    """A node of the demo, played by real processes."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self._stage = stage
        self.home = stage.folder / name
        self._env = {**os.environ, "COVEY_HOME": str(self.home)}
        self._chats: list[Chat] = []

    def types(self, *args: str) -> None:
        """Run a command before the audience: as typed, with all that it prints. Raises: StepFailed."""
        self.shows(f"covey {' '.join(args)}")
        quiet = subprocess.DEVNULL if self._stage.as_json else None
        done = subprocess.run([*COVEY, *args], env=self._env, stdout=quiet, check=False)
        if done.returncode != 0:
            raise StepFailed(f"`covey {' '.join(args)}` ended with exit code {done.returncode}")

    def shows(self, line: str) -> None:
        """A line with the actor's prompt."""
        self._stage.say(f"{self._stage.paint(f'{self.name}$', COLOURS[self.name])} {line}")

    def asks(self, *args: str) -> Json:
        """Run a command behind the scenes; its last line of JSON. Raises: StepFailed."""
        return json.loads(self.asks_lines(*args)[-1])

    def asks_lines(self, *args: str) -> list[str]:
        """Run a command behind the scenes; its lines of JSON. Raises: StepFailed."""
        done = subprocess.run([*COVEY, *args, "--json"], env=self._env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StepFailed(f"`covey {' '.join(args)}` ended with exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip().splitlines()

    def waits_for(self, kind: str, **fields: Json) -> Json:
        """The first event of that kind with these fields, past or to come. Raises: StepFailed."""
        command = [*COVEY, "events", "--follow", "--since", "0", "--json"]
        follower = subprocess.Popen(command, env=self._env, stdout=subprocess.PIPE, text=True)
        assert follower.stdout is not None
        with _ended_after(follower, EVENT_LIMIT_S):
            for line in follower.stdout:
                event = json.loads(line)
                if event.get("kind") == "adapter_refused" and kind != "adapter_refused":
                    raise StepFailed(f"{self.name} refused it: {event['fields'].get('text')}")
                if event.get("kind") == kind and fields.items() <= event["fields"].items():
                    return event
        raise StepFailed(f"{self.name} had no event {kind} within {EVENT_LIMIT_S:.0f} s")

    def follows(self, *args: str, limit_s: float = EVENT_LIMIT_S) -> Iterator[Json]:
        """The items of a command that streams JSON, until it ends or takes too long."""
        follower = subprocess.Popen([*COVEY, *args, "--json"], env=self._env, stdout=subprocess.PIPE, text=True)
        assert follower.stdout is not None
        with _ended_after(follower, limit_s):
            for line in follower.stdout:
                yield json.loads(line)

    def opens_chat(self) -> "Chat":
        """`covey chat`, left open."""
        chat = Chat(self._env)
        self._chats.append(chat)
        return chat

    def log_tail(self) -> str:
        """The end of the daemon's log."""
        log = self.home / "logs" / "covey.log"
        if not log.exists():
            return "(it has none)"
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])

    def leave(self) -> None:
        """Close the chats and stop the daemon, however far the story came."""
        for chat in self._chats:
            chat.close()
        if (self.home / "config.toml").exists():
            subprocess.run([*COVEY, "down"], env=self._env, capture_output=True, timeout=DOWN_LIMIT_S, check=False)


class Chat:
    """A `covey chat` that stays open, driven through its pipes."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [*COVEY, "chat", "--json", "--max-tokens", "48"],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def say(self, text: str) -> tuple[str, list[Json]]:
        """Send a message; the answer's text, and all events of the turn. Raises: StepFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise StepFailed("the chat has ended") from None
        events: list[Json] = []
        with _ended_after(self._process, ANSWER_LIMIT_S, also_at_exit=False):
            for line in self._process.stdout:
                event = json.loads(line)
                events.append(event)
                if event.get("type") == "finished":
                    return "".join(part["text"] for part in events if part.get("type") == "token"), events
                if event.get("type") == "failed" or "error" in event:
                    raise StepFailed(f"the chat said: {event.get('text') or event['error']['text']}")
        raise StepFailed("the chat ended before its answer did")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def _ended_after(process: subprocess.Popen[str], limit_s: float, *, also_at_exit: bool = True) -> Iterator[None]:
    """End the process when the block takes longer than the limit, or with the block."""
    alarm = threading.Timer(limit_s, process.kill)
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
        if also_at_exit:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
