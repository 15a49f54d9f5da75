"""What this node has of what a plan asks its participants for: measured, or as its user says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from agents.federation.events.claims import UnmetNeeds, asked_of, names_of, unmet
from agents.federation.tasks import task_of
from daemon.errors import Unfit
from protocols.joining import Has
from protocols.rounds import Plan

if TYPE_CHECKING:
    from daemon.app import Node


async def has_of(node: "Node", plan: Plan, data: Path | None, given: tuple[str, ...]) -> Has | None:
    """What this node has, of what the plan asks for; what its user says goes before what was measured.

    Raises: UnmetNeeds where the plan takes nobody with so little, Unfit, BadTask, OSError.
    """
    said = _given(given)
    if vain := sorted(said.keys() - names_of(plan)):
        raise Unfit(f"this plan does not ask for {', '.join(vain)}: leave it out of --has")
    if said and data is None:
        raise Unfit("--has tells what this node trains with: say --data too, or leave it out and follow")
    if data is None or (wanted := asked_of(plan, Has())) is None:
        return None
    status = await node.engine.status()
    device = status.device if status is not None else node.config.engine.device
    measured = Has(
        device="" if device == "auto" else device,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        n_samples=await trio.to_thread.run_sync(task_of(plan.task).n_samples, data),
        tokens_per_s=int(status.tokens_per_s) if status is not None else 0,
    )
    has = asked_of(plan, msgspec.structs.replace(measured, **said)) or wanted
    if why := unmet(plan, has):
        raise UnmetNeeds(f"this plan needs {why}")
    return has


def _given(texts: tuple[str, ...]) -> dict[str, str | int]:
    """Raises: Unfit."""
    found: dict[str, str | int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in Has.__struct_fields__:
            raise Unfit(f"{text!r} is none of what a plan asks for: {', '.join(Has.__struct_fields__)}, as NAME=VALUE")
        try:
            found[name] = value if name == "device" else int(value)
            msgspec.convert(found, Has)
        except ValueError as error:  # msgspec's own is one
            raise Unfit(f"{text!r} is nothing that a node can have: {error}") from None
    return found


def in_claims(has: Has | None) -> str:
    """A claim as people read it."""
    told = {name: getattr(has, name) for name in Has.__struct_fields__} if has is not None else {}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in told.items() if value
    )
