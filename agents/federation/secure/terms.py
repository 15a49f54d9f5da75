"""What a plan says of secure aggregation, and which numbers are safe. Cheap to import: every book reads it."""

from typing import Annotated

import msgspec
from msgspec import Meta

from protocols.rounds import MAX_MEMBERS


class Secure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Secure aggregation. threshold: how many unmask, 0 for over two thirds; n_colluders: with the coordinator."""

    threshold: Annotated[int, Meta(ge=0, le=MAX_MEMBERS)] = 0
    n_colluders: Annotated[int, Meta(ge=0, le=MAX_MEMBERS)] = 1

    def needed(self, n_clients: int) -> int:
        """The threshold among so many clients: the plan's, and never one that two active sets could get round."""
        return max(self.threshold or default_threshold(n_clients), (n_clients + self.n_colluders) // 2 + 1)


def secure_of(settings: object) -> Secure:
    """Raises: msgspec.ValidationError."""
    return msgspec.convert(settings, Secure)


def default_threshold(n_clients: int) -> int:
    """More than two thirds."""
    return 2 * n_clients // 3 + 1


def check_threshold(n_clients: int, threshold: int, n_colluders: int) -> str:
    """Why these numbers are not safe, or nothing.

    With 2t <= n + c a coordinator that has c clients on its side can show two active sets to two halves of the rest and
    get both secrets of a client. `n_colluders` counts the coordinator where it is a client.
    """
    if not 1 <= threshold <= n_clients:
        return f"a threshold of {threshold} of {n_clients} clients cannot be reached"
    if 2 * threshold <= n_clients + n_colluders:
        least = (n_clients + n_colluders) // 2 + 1
        return f"a threshold of {threshold} of {n_clients} is too low for {n_colluders} colluders: take {least} or more"
    return ""
