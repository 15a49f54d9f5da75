"""Factories of torch modules, by name: what a plan names, and each participant has installed for itself.

A factory is an entry point in the group `covey.factories`: it takes nothing, and makes a torch.nn.Module. No code comes
over the wire, and nothing here loads one: that is the engine's, whose process alone has torch.
"""

from importlib.metadata import entry_points
from typing import Final

GROUP: Final = "covey.factories"
INPUTS: Final = "x"
LABELS: Final = "y"


def factories() -> list[str]:
    """The names of all that are here."""
    return sorted({point.name for point in entry_points(group=GROUP)})
