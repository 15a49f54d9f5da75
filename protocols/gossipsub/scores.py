"""What this node thinks of a peer, by what it has done on topics: good deliveries, forgeries, broken manners.

Source: libp2p/specs, gossipsub v1.1, "peer scoring". Of its parts we take P1 (time in the mesh), P2 (first deliveries),
P4 (invalid messages), P5 (what the user says of the peer) and P7 (manners). In place of P3 (too few deliveries in the
mesh) peers are tried, see `trials.py`: Covey's topics are quiet for days; P6 (many peers at one address) is the
connections' own limit.

The numbers, so that they can be argued with: a peer that only ever delivers earns 23 at most. One forged message costs
10, three cost 90, four make it unheard. A message that a topic's validator refuses counts a tenth of that, and nothing
where an honest peer may judge otherwise, by its clock or whom it knows: messages whose time runs out while they are
passed on would have honest peers put each other out. Half of every counter is gone in about seven seconds.
"""

from dataclasses import dataclass
from typing import Final

MESH_WEIGHT: Final = 0.01  # a second
MAX_MESH_S: Final = 300.0
FIRST_WEIGHT: Final = 0.5
MAX_FIRST: Final = 40.0
INVALID_WEIGHT: Final = -10.0  # of the counter's square
MANNERS_WEIGHT: Final = -10.0  # of the square of what is above the tolerance
MANNERS_TOLERANCE: Final = 3.0
DECAY: Final = 0.9  # a heartbeat
FIRST_DECAY: Final = 0.99
FORGOTTEN: Final = 0.01  # a counter below that is zero
LIKED: Final = 100.0  # P5: of direct peers, whom the user named

FORGED: Final = 1.0
REFUSED: Final = 0.1

GOSSIP_THRESHOLD: Final = -10.0  # below: no IHAVE or IWANT in either direction
PUBLISH_THRESHOLD: Final = -50.0  # below: our own messages do not go there
GRAYLIST_THRESHOLD: Final = -100.0  # below: nothing that it says is read
OPPORTUNISTIC_THRESHOLD: Final = 1.0  # a mesh whose median is below takes in somebody better


@dataclass(slots=True)
class Score:
    """One peer's record. `is_liked`: the user named it; it cannot fall out of grace by bad manners alone."""

    is_liked: bool = False
    mesh_s: float = 0.0
    n_first: float = 0.0
    n_invalid: float = 0.0
    n_rude: float = 0.0

    def value(self) -> float:
        """The score. At 0 and above a peer may be in meshes."""
        rude = max(0.0, self.n_rude - MANNERS_TOLERANCE)
        return (
            MESH_WEIGHT * self.mesh_s
            + FIRST_WEIGHT * self.n_first
            + INVALID_WEIGHT * self.n_invalid * self.n_invalid
            + MANNERS_WEIGHT * rude * rude
            + (LIKED if self.is_liked else 0.0)
        )

    def delivered_first(self) -> None:
        """It brought a good message that was new."""
        self.n_first = min(MAX_FIRST, self.n_first + 1)

    def decay(self, mesh_s: float) -> None:
        """A heartbeat went by; `mesh_s` of it the peer was in a mesh of ours."""
        self.mesh_s = min(MAX_MESH_S, self.mesh_s + mesh_s) if mesh_s else 0.0
        self.n_first = _less(self.n_first, FIRST_DECAY)
        self.n_invalid = _less(self.n_invalid, DECAY)
        self.n_rude = _less(self.n_rude, DECAY)

    @property
    def is_blank(self) -> bool:
        """Is there nothing to remember it by?"""
        return not (self.n_first or self.n_invalid or self.n_rude)


def _less(counter: float, decay: float) -> float:
    counter *= decay
    return counter if counter >= FORGOTTEN else 0.0
