"""Messages about aggregation: updates go to the engine's worker as files, and so does the result come back."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agents.engine.message import Message, Path


class FlatUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An `agents.aggregation.updates.Update` whose vector of float32 lies in a file, from byte `offset` on."""

    path: Path
    offset: Annotated[int, Meta(ge=0)] = 0
    cid: bytes
    peer: str
    weight: float
    n_steps: int
    staleness: int


class Aggregate(Message, frozen=True, tag="aggregate", kw_only=True):
    """Make one vector of updates on the device, as `agents.aggregation.aggregate` does. Ends with `Aggregated`.

    Rule and pre-steps stand as in a plan, the server step as it is in the round. The result goes into the new file
    `out`; `states` are files of vectors that go on in place.
    """

    n_params: Annotated[int, Meta(ge=0, le=1 << 40)]
    updates: Annotated[tuple[FlatUpdate, ...], Meta(max_length=1 << 16)]
    rule: dict[str, Any]
    before: Annotated[tuple[dict[str, Any], ...], Meta(max_length=16)] = ()
    server: dict[str, Any] | None = None
    seed: bytes = b""
    states: Annotated[tuple[Path, ...], Meta(max_length=16)] = ()
    out: Path


class Aggregated(Message, frozen=True, tag="aggregated"):
    """The result is whole, to the bit what numpy makes of it; or `refused` says why the rule makes none."""

    is_final = True

    device: str
    total_s: float
    refused: str = ""
