"""What a member does with data of its own: train, and look at results. And no more of it than its budget bears.

Where participants hide their own examples, each keeps its own ledger: an update is counted, on the disk, before anybody
may see it. Once nothing is left, the participant leaves; what it follows and countersigns, it goes on with.
"""

import hashlib
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from agents.aggregation.updates import Vector
from agents.federation.events.soundness import signable
from agents.federation.files.bringing import Bringing
from agents.federation.files.shelf import Shelf
from agents.federation.members.actions import Action, Evaluate, Learn, Train
from agents.federation.members.member import Member
from agents.federation.node.secrets import Secrets
from agents.federation.plans.privacy_accounts import noise_of
from agents.federation.privacy.ledger import BudgetSpent
from agents.federation.results.outcome import Document
from agents.federation.tasks import BadTask, Engine, Exam, Made, Work, task_of
from agents.federation.updates.compression.memory import encoded
from agents.federation.updates.tensors import Layout, read_layout, read_vector
from agents.federation.updates.variates import Variates, has_variates, kept, moved, steps_of, write_correction
from protocols.rounds import Plan, Submit
from storage.cid import Cid
from storage.errors import NotFound

Act = Callable[[float], list[Action]]


class Trainee(Bringing):
    """A part of an experiment on a node."""

    secrets: Secrets
    member: Member
    data: Path | None
    rank: int
    _memory: Path
    _variates: Variates
    _engine: Engine | None
    _own: trio.Lock
    _training: tuple[int, trio.CancelScope] | None
    _step: Callable[[Act], Awaitable[None]]
    _spent: str = ""

    async def _train_within_budget(self, number: int, train: Callable[[], Awaitable[None]]) -> None:
        """Train, and leave once the own budget bears no more of it."""
        try:
            await trio.to_thread.run_sync(self.secrets.check_examples)
            await train()
            if number < self.plan.n_rounds:
                await trio.to_thread.run_sync(self.secrets.check_examples)
        except BudgetSpent as error:
            self._spent = str(error)
            if self._ports.identity.peer_id in self.book.joined_now():
                fields: dict[str, Any] = {"experiment": str(self.book.experiment), "what": "training"}
                self._ports.emit("round_trouble", **fields, code=error.code, text=self._spent)
                await self._step(self.member.leave)

    async def _train(self, action: Train) -> None:
        if self.data is None:
            raise NotFound("there is nothing to train on here: covey fl join CID --data PATH")
        document = await self.bring_base(action.round)
        base = document.tensors
        with trio.CancelScope() as scope:
            self._training = (action.round, scope)
            try:
                with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                    work = await trio.to_thread.run_sync(self._work, action, base, Path(folder))
                    if has_variates(self.plan):
                        correction = await self._correction(action.round, document, Path(folder))
                        work = work._replace(correction=correction)
                    made = await self._made(work)
                    submit = await self._submission(action.round, base, work.out, made)
            finally:
                self._training = None
            await self._step(submit)

    async def _correction(self, number: int, document: Document, folder: Path) -> Path:
        """What is added to every gradient of this round: the common variate less the own one, as a file in `folder`."""
        shelf, out = Shelf(self._ports, folder), folder / "correction"
        layout = await trio.to_thread.run_sync(lambda: read_layout(shelf.path(document.tensors)))
        own = await self._own_variate(number, layout, shelf)

        def write() -> None:
            common = read_vector(shelf.path(document.states[0]), layout) if document.states else None
            write_correction(out, layout, own, common)

        await trio.to_thread.run_sync(write)
        return out

    async def _own_variate(self, number: int, layout: Layout, shelf: Shelf) -> Vector:
        """The own variate before a round: as it is kept here, taken on by the rounds since that this member was in."""
        results = [self.book.result(before) for before in range(number)]
        at, own = await trio.to_thread.run_sync(kept, self._variates, results, layout.n_params)
        for before in range(at + 1, number):
            result, base = results[before], results[before - 1]
            if result is None or base is None or result == base:  # void
                continue
            update = (await self.bring_document(result)).update_of(self._ports.identity.peer_id)
            if update is None:
                continue
            states = () if base == self.plan.initial else (await self.bring_document(base)).states[:1]
            for cid in states:
                await self.fetch_file(cid)
            await self.bring_update(update, self._sealed(before, update), before)
            take = partial(_after, self.plan, layout, shelf, states, update)
            own = await trio.to_thread.run_sync(take, own)
        if (last := results[-1]) is not None and at < number - 1:
            await trio.to_thread.run_sync(self._variates.keep, number - 1, last, own)
        return own

    def _sealed(self, number: int, update: Cid) -> Cid | None:
        """What an own update of a round was shown in."""
        own = [
            said.event for said, _ in self.book.said_in(number, Submit) if said.author == self._ports.identity.peer_id
        ]
        return next((cast(Submit, one).sealed for one in own if cast(Submit, one).update == update), None)

    async def _made(self, work: Work) -> Made:
        """What comes of a training. No noise covers its loss: where examples are hidden, nobody is told of it."""
        made = await task_of(self.plan.task).train(work)
        return made if work.noise is None else made._replace(loss=None)

    async def _submission(self, number: int, base: Cid, path: Path, made: Made) -> Act:
        """Submit an update as the plan asks for it; of a masked one nothing is told beside it."""
        charge = self._charge(number, made.n_samples)
        if self.book.secure is not None:
            async with self._own:
                mask = partial(
                    self.secrets.mask, self.book.copy(), number, path, path.with_name("masked"), made.n_samples
                )
                gather = await trio.to_thread.run_sync(mask)
            path, made = path.with_name("masked"), Made(1, 1, None)
        else:
            gather, path = None, await trio.to_thread.run_sync(encoded, self.plan, self._memory, number, path)
        update, sealed = await trio.to_thread.run_sync(self.keep.own_update, path, charge, self.readers(number))
        what = (number, base, update, made.n_samples, made.n_steps, signable(made.loss))
        return lambda now_s: self.member.trained(*what, now_s, sealed, gather)

    def _charge(self, number: int, n_examples: int) -> Callable[[Cid], None]:
        """Counts what an own update tells, before it is shown."""
        return lambda update: self.secrets.charge_examples(number, update, n_examples)

    async def _evaluate(self, action: Evaluate) -> None:
        """See how a result does on what was held out here."""
        if self.data is None:
            return
        await self._examine(action, (await self.bring_result(action.result)).tensors)

    async def _examine(self, action: Evaluate, cid: Cid) -> None:
        assert self.data is not None
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            tensors = await trio.to_thread.run_sync(self._fitting, cid, Path(folder))
            score = await task_of(self.plan.task).evaluate(Exam(tensors, self.data, self._engine))
        if score is not None:
            loss, accuracy = signable(score.loss), signable(score.accuracy)
            say = partial(self.member.evaluated, action.round, action.result, score.n_samples, loss, accuracy)
            await self._step(say)

    def _work(self, action: Train | Learn, base: Cid, folder: Path) -> Work:
        own = hashlib.sha256(b"covey participant seed\0" + action.seed + self._ports.identity.peer_id).digest()
        path = self._fitting(base, folder)
        noise = noise_of(self.plan)
        return Work(path, self.data, own, folder / "update", self._engine, action.round, self.rank, noise)

    def _fitting(self, cid: Cid, folder: Path) -> Path:
        """Tensors as a file, that are its task's: a plan's author may name any. Raises: BadTask, BadTensors."""
        path = Shelf(self._ports, folder).path(cid)
        if why := task_of(self.plan.task).misfit(read_layout(path)):
            raise BadTask(f"the tensors {cid} are not those of the plan's task: {why}")
        return path


def _after(plan: Plan, layout: Layout, shelf: Shelf, states: Sequence[Cid], update: Cid, own: Vector) -> Vector:
    """The own variate after a round that began with those states, and in which that update counted."""
    common = read_vector(shelf.path(states[0]), layout) if states else None
    return moved(own, common, read_vector(shelf.path(update), layout), steps_of(plan).reach)
