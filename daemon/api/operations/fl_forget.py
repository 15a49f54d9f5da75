"""Federated experiments that are done with, here."""

from typing import TYPE_CHECKING

from daemon.api.operation import Operation, Result
from daemon.api.operations.fl import One

if TYPE_CHECKING:
    from daemon.app import Node


class Forgotten(Result, frozen=True):
    """It is known here no more, and this went: `n_files` are held no more, and `n_bytes` are those of them that nothing
    else holds, which `covey repo gc` frees; `n_hidden` are shown to its members no more; `n_journal_bytes` are free.
    """

    experiment: str
    title: str
    n_files: int
    n_bytes: int
    n_hidden: int
    n_journal_bytes: int


async def forget(node: "Node", params: One) -> Forgotten:
    """Let go of an experiment that is over, or in which this node does not train: its history, and what it holds.

    What you published or pinned yourself stays. Nobody who asks brings it back, but `covey fl join` does, from a member
    who has it; for that, what this node signed in it is kept, a few kilobytes.
    """
    from daemon.experiments import forget as forget_it

    return await forget_it(node, params)


OPERATIONS = (
    Operation(
        noun="fl",
        verb="forget",
        summary="Let go of an experiment, and of all that it holds here.",
        params=One,
        result=Forgotten,
        handler=forget,
        arguments=("experiment",),
    ),
)
