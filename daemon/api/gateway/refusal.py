"""What the gateway says instead of content."""

from collections.abc import Sequence

Header = tuple[str, str]


class Refusal(Exception):
    """The gateway does not give this: a status, one line that says why, and headers that belong to it."""

    def __init__(self, status: int, text: str, headers: Sequence[Header] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = tuple(headers)
