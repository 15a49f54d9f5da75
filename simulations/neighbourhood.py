"""An experiment without a coordinator, of up to a thousand members in one process, on a virtual clock.

As in `crowd`, time goes in steps and what was said in one is heard in the next. States are real: files of tensors, and
means that are made of them as the daemon makes them. What training adds to a model is up to the scenario.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

from agents.aggregation.updates import Vector
from agents.federation.events.book import Book
from agents.federation.members.actions import Action, Average, Evaluate, Fetch, Learn, Say
from agents.federation.members.neighbour import Neighbour
from agents.federation.neighbours.blend import Given, blend
from agents.federation.neighbours.views import Views
from agents.federation.results.neighbours import verify_gossip
from agents.federation.results.verify import Finding
from agents.federation.updates.tensors import Layout
from protocols.entry import Entry
from protocols.rounds import Mix, State
from simulations.crowd import STEP_S, Crowd
from simulations.learning import Shelf
from storage.cid import Cid
from storage.keys import Identity

Training = Callable[[int, int, Vector], Vector]
"""Of a member in a round: what its model becomes."""


def unchanged(number: int, round_number: int, model: Vector) -> Vector:
    """Nobody trains: what is left is the mean of what there was at first."""
    return model


class Neighbourhood(Crowd):
    """Members, the time, who hears whom, and their models. `folder` takes the files.

    is_local: of states and means only those hear who are given them, or take what was made of them, and the first
    member, who proves it all. A thousand who all hear everything take too long for a simulation.
    """

    def __init__(
        self,
        n_members: int,
        seed: int,
        folder: Path,
        initial: Vector,
        train: Training = unchanged,
        *,
        is_local: bool = False,
        **changes: Any,
    ) -> None:
        self.shelf: Final = Shelf(folder)
        self.layout: Final = Layout.of({"w": (len(initial),)})
        self.train = train
        self.is_local: Final = is_local
        self._concerned: dict[int, frozenset[int]] = {}
        self.given: Callable[[int, State, Path], Path] = lambda number, state, path: path
        fixed: dict[str, Any] = {"initial": self.shelf.add(self.layout, initial), "is_evaluated": False}
        super().__init__(n_members, seed, **fixed | changes)
        self._numbers = {one.peer_id: number for number, one in enumerate(self.identities)}
        self.train_s = [self.chance.uniform(2.0, 6.0) for _ in range(n_members)]

    def _new_member(self, who: Identity, book: Book) -> Neighbour:
        return Neighbour(who, book)

    def neighbour(self, number: int) -> Neighbour:
        """A member's core."""
        return cast(Neighbour, self.members[number])

    def model(self, cid: Cid) -> Vector:
        """The tensors of that CID."""
        return self.shelf.vector(cid)

    def mean(self, number: int, round_number: int) -> Mix | None:
        """A member's mean of a round."""
        said = self.neighbour(number).views.mix(self.identities[number].peer_id, round_number)
        return cast(Mix, said.event) if said is not None else None

    def findings(self, number: int = 0) -> list[Finding]:
        """What a member proves or refutes of it all."""
        book = Book(self.plan)
        for entry in self.members[number].book.entries():
            book.add(entry)
        return list(verify_gossip(book, self.shelf))

    def restart(self, number: int) -> None:
        """A member dies and comes back with what it had said and heard."""
        known = self.members[number].book.entries()
        self.members[number] = self._new_member(self.identities[number], Book(self.plan, self._read))
        self._do(number, self.members[number].receive(known, self.now_s)[0])

    def _reaches(self, author: int, entry: Entry, number: int) -> bool:
        if not self.is_local or number == 0 or entry.kind not in (State.kind, Mix.kind):
            return True
        if author not in self._concerned:
            views = self.neighbour(0).views
            near = views.neighbours(self.identities[author].peer_id, 1)
            far = [views.neighbours(peer, 1) for peer in near]
            self._concerned[author] = frozenset(self._numbers[peer] for peer in near.union(*far))
        return number in self._concerned[author]

    def _seen(self, number: int) -> Iterable[int]:
        views = self.neighbour(number).views
        me = self.identities[number].peer_id
        if me not in views.roster:
            return ()
        around = views.neighbours(me, views.at(me)) | views.givers(me, views.at(me))
        return [self._numbers[peer] for peer in around]

    def _do(self, number: int, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Learn(round_number, base):
                    self._later(number, self.train_s[number], lambda m, n=round_number, b=base: self._learned(  # type: ignore[misc]
                        number, cast(Neighbour, m), n, b))  # fmt: skip
                case Average():
                    self._later(number, STEP_S, lambda m, a=action: self._averaged(number, cast(Neighbour, m), a))  # type: ignore[misc]
                case Fetch(submission):
                    self._later(number, 0.0, lambda m, s=submission: m.fetched(s, self.now_s))  # type: ignore[misc]
                case Evaluate():
                    pass
                case Say():
                    super()._do(number, [action])

    def _learned(self, number: int, member: Neighbour, round_number: int, base: Cid) -> list[Action]:
        state = self.train(number, round_number, self.model(base))
        tensors = self.shelf.add(self.layout, state)
        return member.learned(round_number, tensors, None, 1, 1, None, self.now_s)

    def _averaged(self, number: int, member: Neighbour, action: Average) -> list[Action]:
        own, *given = (self._file(number, member.views, link) for link in (action.own, *action.states))
        with tempfile.TemporaryDirectory(dir=self.shelf.folder) as name:
            found = blend(member.views, self.layout, own, given, Path(name) / "mean")
            tensors = self.shelf.cid(found.tensors)
        return member.averaged(action.round, found.states, found.unfit, tensors, found.weight, self.now_s)

    def _file(self, number: int, views: Views, link: Cid) -> Given:
        said = views.book.get(link)
        assert said is not None and isinstance(said.event, State)
        return Given(said, self.given(number, said.event, self.shelf.path(said.event.tensors)))
