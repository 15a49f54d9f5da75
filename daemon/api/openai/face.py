"""What a node knows of its OpenAI-compatible face: where it is, how much it did, and the token that opens it."""

import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.errors import BadHome
from storage.durable import create_file, write_file

TOKEN_BYTES: Final = 32
MAX_TOKEN_BYTES: Final = 256
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~-]{32,256}")


class Token:
    """A bearer token in a file: made with its first use, for the home's owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value: bytes | None = None

    def value(self) -> str:
        """The token, made if there is none yet. Raises: BadHome for a file that holds none."""
        if self._value is None:
            self._value = self._read() or self._make()
        return self._value.decode()

    def renew(self) -> str:
        """A new token, durably; the old one is worth nothing from now on."""
        made = _new()
        write_file(self._path, made + b"\n")
        self._value = made
        return made.decode()

    def is_(self, given: str) -> bool:
        """Is this the token? Takes the same time wherever they differ."""
        return hmac.compare_digest(self.value().encode(), given.encode("utf-8", "replace"))

    def _read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_TOKEN_BYTES + 2).strip()
        except FileNotFoundError:
            return None
        if not _TOKEN.fullmatch(raw):
            raise BadHome(f"{self._path} holds no token: remove it, and a new one is made")
        self._path.chmod(0o600)
        return raw

    def _make(self) -> bytes:
        made = _new()
        try:
            create_file(self._path, made + b"\n")
        except FileExistsError:  # another process was faster
            return self._read() or made
        return made


@dataclass
class Face:
    """The face: `url` while it is served; answers under way or waiting, requests let in, tokens written."""

    token: Token
    url: str | None = None
    n_answers: int = 0
    n_requests: int = 0
    n_tokens: int = 0


def _new() -> bytes:
    return f"covey-{secrets.token_urlsafe(TOKEN_BYTES)}".encode()
