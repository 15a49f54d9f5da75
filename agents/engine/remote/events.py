"""Server-sent events out of a stream of bytes. Pure; what a server sends is bounded.

Source: the event stream format of the HTML standard, as far as OpenAI's API uses it: `data` alone counts.
"""

from typing import Final

from agents.errors import BackendFailed

MAX_EVENT_BYTES: Final = 1 << 20


class Events:
    """Cuts a stream into the data of its events."""

    def __init__(self) -> None:
        self._held = bytearray()  # the line that has no end yet
        self._data: list[bytes] = []  # the event that has no end yet
        self._n_bytes = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes; return the data of each event that they complete. Raises: BackendFailed."""
        if self._after_cr and chunk.startswith(b"\n"):  # the other half of a line's end
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r") if chunk else self._after_cr
        found = []
        *ends, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for end in ends:
            self._held += end
            data = self._line(bytes(self._held))
            self._held.clear()
            if data is not None:
                found.append(data)
        self._held += rest
        if self._n_bytes + len(self._held) > MAX_EVENT_BYTES:
            raise BackendFailed(f"the server sent an event of over {MAX_EVENT_BYTES} bytes")
        return found

    def _line(self, line: bytes) -> str | None:
        """Take a whole line; return the data of the event that it ends, if it does."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._n_bytes += len(value)
            return None
        data, self._data, self._n_bytes = self._data, [], 0
        if not data:
            return None
        try:
            return b"\n".join(data).decode()
        except UnicodeDecodeError:
            raise BackendFailed("the server sent an event that is not UTF-8") from None
