"""What a member wants done: entries to be said, and work that is answered with a call."""

from typing import NamedTuple

from protocols.entry import Entry
from storage.cid import Cid
from storage.keys import PeerId


class Say(NamedTuple):
    """Store this entry, durably; then tell the others."""

    entry: Entry


class Fetch(NamedTuple):
    """Bring an update here and keep it; then call `fetched`."""

    submission: Cid
    update: Cid
    author: PeerId


class Train(NamedTuple):
    """Train from the result before this round, with this seed; then call `trained`."""

    round: int
    base: Cid
    seed: bytes


class Compute(NamedTuple):
    """Admit and aggregate what a final close lists; then call `computed`."""

    round: int
    close: Cid


class Evaluate(NamedTuple):
    """See how a result does on data that was held out here; then call `evaluated`. It is asked for once."""

    round: int
    result: Cid


class Prepare(NamedTuple):
    """Draw the secrets of a secure round and keep them; then call `answer` with their keys."""

    round: int


class Deal(NamedTuple):
    """Split the secrets for those whose keys this list gathers; then call `answer` with the shares."""

    round: int
    gather: Cid


class Inspect(NamedTuple):
    """See whether those on this list dealt true shares; then call `inspected` with what there is to complain of."""

    round: int
    gather: Cid


class Reveal(NamedTuple):
    """Tell the shares that unmask a final close; then call `answer` with them."""

    round: int
    close: Cid


class Draw(NamedTuple):
    """Draw the noise of a close and keep it; then call `drawn`."""

    round: int
    term: int


class Learn(NamedTuple):
    """Under gossip: train the own model, which `base` holds, with this seed; then call `learned`."""

    round: int
    base: Cid
    seed: bytes


class Average(NamedTuple):
    """Under gossip: make the mean of the own state and of those that were given; then call `averaged`."""

    round: int
    own: Cid
    states: tuple[Cid, ...]


Work = Fetch | Train | Compute | Evaluate | Prepare | Deal | Inspect | Reveal | Draw | Learn | Average
Action = Say | Work
