"""Who of those that use an HTTP face may have more of it. No IO."""

from collections import Counter
from typing import Final

from protocols.addresses import network_of

SHARE: Final = 4  # one network of the public internet has a quarter of all places, and
MIN_SHARE: Final = 8  # so many always: what one node asks of a gateway at once


class Shares:
    """Places, few of them for the clients of one network: they may be slow on purpose, in all that they are let into.

    This machine and private networks have no bound of their own: a proxy that stands there asks for everybody.
    """

    def __init__(self, n_places: int) -> None:
        self.n_taken = 0
        self._n_places = n_places
        self._of_network: Counter[str] = Counter()

    def take(self, host: str) -> bool:
        """Take a place for a client at this address. Returns: whether there was one."""
        network = network_of(host)
        most = max(MIN_SHARE, self._n_places // SHARE)
        if self.n_taken >= self._n_places or (network and self._of_network[network] >= most):
            return False
        self.n_taken += 1
        self._of_network[network] += 1
        return True

    def give(self, host: str) -> None:
        """Give a place back."""
        network = network_of(host)
        self.n_taken -= 1
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]
