"""Refuse a message that was accepted before: a sliding window of sequences for each author and purpose.

Reordering is fine within the window. Call `admit` behind `envelope.open` and behind the check that the author is one
to listen to, so that strangers cannot fill the table; and before acting on the message.

Source: the anti-replay window of IPsec (RFC 4303, section 3.4.3).
"""

from typing import Any, Final, NamedTuple

from protocols.envelope import Signed
from protocols.errors import Remote, Replayed
from storage.catalog.replay import Outcome, ReplayTable, SeenRow

WINDOW: Final = 256
_BITMAP_BYTES: Final = WINDOW // 8
_ALL: Final = (1 << WINDOW) - 1


class TooManyAuthors(Remote):
    """The table of authors is full, and a new one cannot be guarded against replays. It empties as messages expire."""

    code = "too_many_authors"


class Window(NamedTuple):
    """The highest sequence accepted; bit i of `accepted` stands for `highest` - i."""

    highest: int = 0
    accepted: int = 0

    def admit(self, sequence: int) -> "Window | None":
        """The window with `sequence` in it; None when it is in already, or too far behind to tell."""
        ahead = sequence - self.highest
        if ahead > 0:
            kept = self.accepted << ahead & _ALL if ahead < WINDOW else 0
            return Window(sequence, kept | 1)
        bit = 1 << -ahead if -ahead < WINDOW else 0
        if not bit or self.accepted & bit:
            return None
        return Window(self.highest, self.accepted | bit)


def admit(table: ReplayTable, signed: Signed[Any], unix_s: float) -> None:
    """Record that `signed` was accepted, durably. Raises: Replayed, TooManyAuthors."""

    def step(row: SeenRow | None) -> SeenRow | None:
        window = Window(row.highest, int.from_bytes(row.bitmap)) if row else Window()
        after = window.admit(signed.sequence)
        return SeenRow(after.highest, after.accepted.to_bytes(_BITMAP_BYTES)) if after else None

    outcome = table.record(signed.author, signed.purpose.external_aad, signed.expires_unix_s, unix_s, step)
    if outcome is Outcome.REFUSED:
        raise Replayed(f"message {signed.sequence} of {signed.author} was accepted before, or is too old to tell")
    if outcome is Outcome.FULL:
        raise TooManyAuthors(f"the table of authors is full: {signed.author} is not heard for now")
