"""What an experiment is found to be: one thing that was checked, and what came of it."""

from typing import Literal, NamedTuple

from storage.keys import PeerId


class Finding(NamedTuple):
    """One thing that was checked. `round` is 0 for the experiment as a whole; `by` is who is to blame.

    is_of_plan: what the plan's options leave undecidable for everybody and for ever; not for lack of something.
    """

    round: int
    verdict: Literal["proved", "refuted", "not decidable"]
    what: str
    by: PeerId | None = None
    is_of_plan: bool = False
