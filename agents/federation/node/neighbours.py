"""An experiment without a coordinator on one node: what its core wants, carried out over the store.

All but this is as in other experiments: the journal, the questions to other members, seals, and what is kept.
"""

import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import trio

from agents.aggregation.updates import largest
from agents.federation.events.book import Said
from agents.federation.events.soundness import signable
from agents.federation.files.shelf import Shelf
from agents.federation.members.actions import Action, Average, Evaluate, Fetch, Learn
from agents.federation.members.neighbour import Neighbour
from agents.federation.neighbours.blend import Given, blend
from agents.federation.node.experiment import Experiment
from agents.federation.tasks import Made
from agents.federation.updates.tensors import BadTensors, Layout, flush, new_vector, read_layout, read_vector
from protocols.rounds import Mix, State
from storage.cid import Cid
from storage.errors import NotFound
from storage.keys import Identity, PeerId

STATE_FILE, MEAN_FILE = "state", "mean"
MAX_SHOWN_STATES = 32  # of a round, in a report


class GossipExperiment(Experiment):
    """Runs one."""

    def _new_member(self, identity: Identity) -> Neighbour:
        return Neighbour(identity, self.book, self.secrets.bears)

    @property
    def neighbour(self) -> Neighbour:
        """The core."""
        return cast(Neighbour, self.member)

    async def _act(self, action: Action) -> None:
        match action:
            case Fetch():
                await self._fetch_state(action)
            case Learn():
                await self._train_within_budget(action.round, partial(self._learn, action))
            case Average():
                await self._average(action)
            case Evaluate():
                if self.data is not None:
                    await self._examine(action, action.result)
            case _:
                await super()._act(action)

    async def _fetch_state(self, action: Fetch) -> None:
        async with self._turns.turn(action.author):
            await self._bring(action.submission)
        await self._step(partial(self.member.fetched, action.submission))

    async def _bring(self, link: Cid) -> None:
        state = self.book.get(link)
        if state is not None and isinstance(state.event, State):
            await self.bring_update(state.event.tensors, state.event.sealed, state.event.round)

    async def _learn(self, action: Learn) -> None:
        if self.data is None:
            raise NotFound("there is nothing to train on here: covey fl join CID --data PATH")
        await self.fetch_file(action.base)
        with trio.CancelScope() as scope:
            self._training = (action.round, scope)
            try:
                with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                    work = await trio.to_thread.run_sync(self._work, action, action.base, Path(folder))
                    made = await self._made(work)
                    path = await trio.to_thread.run_sync(moved, work.base, work.out, Path(folder) / STATE_FILE)
                    charge = self._charge(action.round, made.n_samples)
                    tensors, sealed = await trio.to_thread.run_sync(
                        self.keep.own_update, path, charge, self.readers(action.round)
                    )
            finally:
                self._training = None
            await self._step(partial(self._learned, action.round, tensors, sealed, made))

    def _learned(self, number: int, tensors: Cid, sealed: Cid | None, made: Made, now_s: float) -> list[Action]:
        loss = signable(made.loss)
        return self.neighbour.learned(number, tensors, sealed, made.n_samples, made.n_steps, loss, now_s)

    async def _average(self, action: Average) -> None:
        mix = await trio.to_thread.run_sync(self._mean, action.round, action.own, action.states)
        say = partial(self.neighbour.averaged, mix.round, mix.states, mix.unfit, mix.tensors, mix.weight)
        await self._step(say)

    def _mean(self, number: int, own: Cid, links: tuple[Cid, ...]) -> Mix:
        """The mean, made and kept; it is not shown: who wants to see it makes it of the states."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as name, self._ports.store.lease():
            shelf = Shelf(self._ports, Path(name))
            mine, *given = (self._given(shelf, link) for link in (own, *links))
            layout = read_layout(shelf.path(self.plan.initial))
            found = blend(self.neighbour.views, layout, mine, given, Path(name) / MEAN_FILE)
            tensors = shelf.cid(found.tensors)
            self.keep.hold(tensors)
            return Mix(round=number, states=found.states, tensors=tensors, weight=found.weight, unfit=found.unfit)

    def _given(self, shelf: Shelf, link: Cid) -> Given:
        said = self.book.get(link)
        if said is None or not isinstance(said.event, State):
            raise NotFound(f"the state {link} is not known")
        return Given(said, shelf.path(said.event.tensors))

    async def apart(self) -> dict[int, float]:
        """By round, how far the models of members are from their mean, of those that are here; for a picture."""
        return await trio.to_thread.run_sync(self._apart)

    def _apart(self) -> dict[int, float]:
        found: dict[int, list[Cid]] = {}
        for _, state in self.book.copy().all_of(State):
            if len(here := found.setdefault(state.round, [])) < MAX_SHOWN_STATES and self.keep.is_held(state.tensors):
                here.append(state.tensors)
        apart = {}
        for number, cids in found.items():
            with tempfile.TemporaryDirectory(dir=self._scratch) as name:
                if len(cids) > 1 and self.keep.is_held(self.plan.initial):
                    first, *paths = map(Shelf(self._ports, Path(name)).path, (self.plan.initial, *cids))
                    apart[number] = distance(read_layout(first), paths)
        return apart

    async def mean_of(self, peer: PeerId, number: int) -> tuple[Said, Mix]:
        """A member's mean, here and held: its own, or made again of the states that it names.

        Raises: NotFound, BadTensors where it is another, NoProviders, TimedOut.
        """
        said = self.neighbour.views.mix(peer, number)
        own = self.neighbour.views.state(peer, number)
        if said is None or own is None:
            raise NotFound(f"{peer} has no mean of round {number} yet: covey fl status {self.cid}")
        mix = cast(Mix, said.event)
        if await trio.to_thread.run_sync(self.keep.is_held, mix.tensors):
            return said, mix
        links = {*mix.states, *(one.state for one in mix.unfit)}
        for link in sorted(links):
            await self._bring(link)
        found = await trio.to_thread.run_sync(self._mean, number, own.cid, tuple(sorted(links - {own.cid})))
        if found.tensors != mix.tensors:
            raise BadTensors(f"what {peer} says is its mean of round {number} is not: covey fl verify {self.cid}")
        return said, mix


def distance(layout: Layout, paths: Sequence[Path]) -> float:
    """Root mean square of the distances from their mean, as a part of its norm. For people: no bit depends on it.

    Of states of that layout: anybody may give others, and what is no state at all.
    """
    vectors = [read_vector(path, layout) for path in paths if _is_of(layout, path)]
    if not vectors:
        return 0.0
    mean = np.zeros(layout.n_params)
    for vector in vectors:
        mean += vector
    mean /= len(vectors)
    squares = [float(np.square(vector - mean).sum()) for vector in vectors]
    norm = math.sqrt(float(np.square(mean).sum()))
    found = math.sqrt(math.fsum(squares) / len(squares)) / norm if norm else 0.0
    return found if math.isfinite(found) else 0.0


def _is_of(layout: Layout, path: Path) -> bool:
    try:
        return not read_layout(path).differs_from(layout)
    except BadTensors:
        return False


def moved(base: Path, update: Path, out: Path) -> Path:
    """The model that an update makes of its base; one that diverged leaves the base. Raises: BadTensors, OSError."""
    layout = read_layout(base)
    state, before = new_vector(out, layout), read_vector(base, layout)
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(before, read_vector(update, layout), out=state)
    if not np.isfinite(largest(state)):
        state[:] = before
    flush(state, out)
    return out
