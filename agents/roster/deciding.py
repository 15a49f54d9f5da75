"""What an agent decides in its workspace: its host signs it, so the host's grants bound it, and its policy in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from agents.workspace.errors import NotGranted
from agents.workspace.history import Node
from agents.workspace.patterns import matches
from agents.workspace.runs.effects import EffectFailed
from agents.workspace.workspace import Workspace
from protocols.errors import ProtocolError
from protocols.workspaces.entries import Propose, Vote, check
from storage.keys import PeerId

MIN_ID_CHARS: Final = 8


@dataclass(frozen=True, slots=True)
class Deciding:
    """One agent's say in a workspace; `decides` are the keys that its policy gives it."""

    one: Workspace
    me: PeerId
    decides: tuple[str, ...]
    unix_s: float

    async def propose(self, key: str, text: str, options: Sequence[str], minutes: int) -> Node:
        """Put something to the vote; what this node proposed in the same words and is open is not proposed again.

        Raises: EffectFailed, NotGranted, NoKey, StorageError.
        """
        self._need(key)
        if not self.one.space.may(self.me, "write", key):
            raise NotGranted(f"the agent's node may not propose under {key!r}: no grant of its covers that")
        for node in self.one.space.open_proposals():
            says = cast(Propose, node.says)
            if (node.author, says.key, says.text, says.options) == (self.me, key, text, tuple(options)):
                return node
        deadline = int(self.unix_s + 60 * minutes)
        wish = Propose(
            key=key, text=text, options=tuple(options), rule="majority", closers=(self.me,), deadline_unix_s=deadline
        )
        try:
            return await self.one.say(check(wish))
        except ProtocolError as error:
            raise EffectFailed(f"that cannot be proposed: {error}") from None

    async def vote(self, proposal: str, option: str) -> Node:
        """Vote for an option of a proposal, in the place of what this node voted before; the proposal.

        Raises: EffectFailed, NotGranted, StorageError.
        """
        fits = [node for node in self.one.space.open_proposals() if str(node.id).endswith(proposal)]
        if len(proposal) < MIN_ID_CHARS or len(fits) != 1:
            raise EffectFailed(f"{proposal[:64]!r} names no proposal that is open: give its id")
        says = cast(Propose, fits[0].says)
        self._need(says.key)
        if self.me not in self.one.space.voters(says.key):
            raise NotGranted(f"the agent's node has no vote on {says.key!r}: no grant of its covers that")
        if option not in says.options:
            raise EffectFailed(f"{option[:64]!r} is no option; there are: {', '.join(says.options)}")
        await self.one.say(check(Vote(proposal=fits[0].entry.cid, ranking=(says.options.index(option),))))
        return fits[0]

    def open(self) -> list[Node]:
        """What is put to the vote, and is the agent's to decide."""
        found = self.one.space.open_proposals()
        return [node for node in found if matches(self.decides, cast(Propose, node.says).key)]

    def _need(self, key: str) -> None:
        if not matches(self.decides, key):
            raise NotGranted(f"the agent may not decide what stands under {key!r} (policy.decides)")
