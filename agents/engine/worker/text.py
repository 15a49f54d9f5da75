"""From tokens to text that may be shown: whole characters only, and nothing of a stop string. Pure."""

import re
from collections.abc import Callable, Sequence
from typing import Final

_UNFINISHED: Final = "\ufffd"
_MAX_HELD_TOKENS: Final = 16


class TextStream:
    """Turns the tokens of an answer into text, piece by piece.

    Args:
        decode: from token ids to text; bytes that are not UTF-8 become U+FFFD.
        stop: the answer ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        # Tokens in front of `shown` were shown; those from `start` are decoded again with the new ones, because the
        # space before a word depends on its neighbour.
        self._start = 0
        self._shown = 0
        self._held = ""
        self.is_stopped = False

    def feed(self, token: int) -> str:
        """Take the next token; return the text that can be shown now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith(_UNFINISHED) and len(self._ids) - self._shown < _MAX_HELD_TOKENS:
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._scan(after[len(before) :])

    def finish(self) -> str:
        """The answer is over: what was held back, without an unfinished character."""
        before = self._decode(self._ids[self._start : self._shown])
        rest = self._decode(self._ids[self._start :])[len(before) :].rstrip(_UNFINISHED)
        self._shown = len(self._ids)
        text = self._scan(rest) + self._held
        self._held = ""
        return text

    def _scan(self, new: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def piece_bytes(piece: str) -> bytes:
    """The bytes that a vocabulary's entry stands for: written in GPT-2's alphabet of bytes, or in SentencePiece's.

    An entry that is in neither (a special token) stands for its name.
    """
    if _BYTE.fullmatch(piece):
        return bytes.fromhex(piece[3:5])
    if _SPACE in piece:
        return piece.replace(_SPACE, " ").encode()
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return piece.encode()


def _alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE: Final = "\u2581"
_ALPHABET: Final = _alphabet()
