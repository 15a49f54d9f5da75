"""One experiment on one node: its core driven by the clock, what it wants carried out, its members asked for news.

What was said or heard is in the journal before anybody hears of it. Nothing that a member says or gives can stop this;
a disk that cannot be written to does, and the next start reads the journal again.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog
import trio

from agents.adapters.ports import Ports
from agents.errors import AgentError
from agents.federation.events.book import Book
from agents.federation.events.grants import is_let_out
from agents.federation.files.needs import named, older
from agents.federation.files.shelf import Keep, LetGo, Shelf, limit_of, moved_bounds, sizes_of
from agents.federation.files.turns import Turns
from agents.federation.members.actions import (
    Action,
    Compute,
    Deal,
    Draw,
    Evaluate,
    Fetch,
    Inspect,
    Prepare,
    Reveal,
    Say,
    Train,
)
from agents.federation.members.duty import NOT_WHOLE
from agents.federation.members.member import Member
from agents.federation.node.activity import Activity, end_of, ending_of, words
from agents.federation.node.asking import FIRST_RETRY_S, LONGEST_RETRY_S, Asking
from agents.federation.node.device import Device
from agents.federation.node.heard import is_linked, lacking
from agents.federation.node.journal import Journal
from agents.federation.node.offload import Offloaded
from agents.federation.node.room import Room
from agents.federation.node.secrets import Secrets
from agents.federation.node.sifting import Aside, without, words_of
from agents.federation.node.trainee import Trainee
from agents.federation.plans.options import options_of
from agents.federation.results.outcome import refusals
from agents.federation.results.verify import Computed, recompute
from agents.federation.secure.sides import SecureRefused
from agents.federation.tasks import Engine
from agents.federation.updates.tensors import BadTensors
from agents.federation.updates.variates import Variates
from agents.whereabouts import members_here
from protocols.entry import Entry
from protocols.errors import Malformed, ProtocolError
from protocols.rounds import Close, Submit
from protocols.rounds_sync import Desk, Known
from protocols.telling import Where
from storage.cid import Cid
from storage.errors import BrokenSeal, NotARecipient, StorageError
from storage.keys import Identity, PeerId

TICK_S: Final = 0.5
LONGEST_LOOK_S: Final = 600.0  # between two looks at what somebody submitted, and is no update

_NO_UPDATE: Final = (BadTensors, SecureRefused, NotARecipient, BrokenSeal)

log = structlog.get_logger(__name__)


class Experiment(Asking, Trainee):
    """Runs one. `data` is what this node trains on; without it, it follows and does not train. `rank`: see `Work`."""

    def __init__(
        self,
        ports: Ports,
        plan: Entry,
        entries: Iterable[Entry],
        journal: Journal,
        scratch: Path,
        data: Path | None,
        engine: Engine | None = None,
        rank: int = 0,
        device: Device | None = None,
    ) -> None:
        super().__init__()
        self._ports = ports
        self.plan_entry: Final = plan
        self.book = Book(plan)
        self.plan = self.book.plan
        self.cid = self.book.experiment
        self.keep = Keep(ports, self.cid, self.plan)
        self.secrets = Secrets(ports, self.book, self.keep, journal.path, scratch)
        self.member = self._new_member(ports.identity)
        self.member.owned = self.keep.owned
        self.data, self.rank = data, rank
        self._journal = journal
        self._scratch = scratch
        self._memory = journal.path.with_suffix(".memories")
        self._variates = Variates(journal.path.with_suffix(".variates"))
        self._engine, self._device = engine, device
        self._lock = trio.Lock()
        self._durable: set[Cid] = set()
        self.room = Room(self.book)
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._failure: BaseException | None = None
        self._training: tuple[int, trio.CancelScope] | None = None
        self._own = trio.Lock()
        self._turns = Turns(self.plan.deadline_s)
        self._showing = trio.Lock()
        self._doing: dict[str, int] = {}
        self._unfit: Counter[Cid] = Counter()
        self._trouble = ""
        self._fetched_bytes = 0
        self._came_bytes: Counter[tuple[Cid, int]] = Counter()
        self._fetches: dict[Cid, trio.Lock] = {}
        self._sizes: dict[Cid, int] = {}
        self._bounds: dict[Cid, float] = {}
        self.hearing: Sequence[Entry] = ()  # what is being taken in
        self.aside: Sequence[Aside] = ()  # whose authors are heard no further until the next start
        self._restore(entries)

    def _new_member(self, identity: Identity) -> Member:
        return Member(identity, self.book, self.secrets.bears)

    def _restore(self, entries: Iterable[Entry]) -> None:
        known = list(entries)
        wrong = self.book.add_all(known)
        for _, error in wrong:
            log.warning("event_left_out", experiment=str(self.cid), error=str(error))
        refused = {entry.cid for entry, _ in wrong}
        own = [entry for entry in known if entry.author == self._ports.identity.peer_id]
        self._unheard = [one for one in own if one.cid not in refused]
        self.member.n_said = max((one.sequence + 1 for one in own), default=0)
        self.member.is_unsure = self._journal.is_damaged and bool(self.shown_to - {self._ports.identity.peer_id})
        self._count_heard(known)
        self._told_round = self.member.current() - 1
        self._is_ended = self.is_over

    def _count_heard(self, known: Iterable[Entry]) -> None:
        """Count what the book took of the journal. Own events that it left out are put in again with all that is heard:
        nothing known here lets this node in any more, but others' list may, and no number may be signed twice.
        """
        for entry in known:
            if entry.cid in self.book:
                self._count(entry)
        self._unheard = [one for one in self._unheard if one.cid not in self.book]

    # --- what its user sees and wants

    @property
    def is_let_out(self) -> bool:
        """Was this node let in by a grant, and is it shown nothing any more, and told at most how this round ends?"""
        return is_let_out(self.book, self._ports.identity.peer_id, self._ports.unix_s())

    @property
    def shown_to(self) -> frozenset[PeerId]:
        """Who can have been shown things for this experiment."""
        return frozenset((*self.keep.ever, *self.plan.members, *self.book.let_in()))

    @property
    def activity(self) -> Activity:
        """What happens now."""
        doing = ", ".join(sorted(self._doing))
        missing = "" if self.member.is_whole or self.is_over else NOT_WHOLE
        trouble = (
            self._trouble or missing or self._spent or self.secrets.trouble or "; ".join(map(words_of, self.aside))
        )
        return Activity(doing, trouble, self._fetched_bytes, len(self._reached))

    async def weigh(self) -> None:
        """See how many bytes the updates have that are here."""
        updates = {self.plan.initial, *(update for update, _ in named(self.book))} - self._sizes.keys()
        if updates:
            self._sizes |= await trio.to_thread.run_sync(sizes_of, self._ports, updates)

    def update_bytes(self, number: int) -> int:
        """What the updates of a round take together, as far as they were weighed."""
        return sum(self._sizes.get(update, 0) for update in {update for update, of in named(self.book) if of == number})

    @property
    def plain_bytes(self) -> int:
        """What an update would take as it is trained, as the first tensors do; 0 where those are not here."""
        return self._sizes.get(self.plan.initial, 0)

    async def clip_bounds(self, numbers: Iterable[int]) -> dict[int, float]:
        """By round, what updates, or single gradients, are clipped to; without those whose bound is not known here."""
        privacy, before = options_of(self.plan).privacy, {number: self.book.result(number - 1) for number in numbers}
        if privacy is None:
            return {}
        new = {result for result in before.values() if result is not None} - self._bounds.keys()
        if privacy.quantile and new - {self.plan.initial}:
            self._bounds |= await trio.to_thread.run_sync(moved_bounds, self._ports, new - {self.plan.initial})
        found = {
            number: self._bounds.get(result) if privacy.quantile and result != self.plan.initial else privacy.bound
            for number, result in before.items()
            if result is not None
        }
        return {number: bound for number, bound in found.items() if bound is not None}

    async def apart(self) -> dict[int, float]:
        """By round, how far members' models are apart: not at all, but for those without a coordinator."""
        return {}

    async def do(self, wish: Callable[[float], list[Action]]) -> None:
        """Let the core act on its user's wish; what it says is durable when this returns. Raises: StorageError."""
        await self._step(wish)

    async def let_go(self) -> None:
        """Say, hold and show nothing any more, whoever is at work with it: they are told so by what they do next."""
        async with self._lock:
            self._failure = self._failure or LetGo()
        await trio.to_thread.run_sync(self.keep.let_go)

    @property
    def is_unwritten(self) -> bool:
        """Did the journal fail, so that what was said is not on the disk?"""
        return self._failure is not None

    def stopped(self, error: BaseException) -> None:
        """It goes no further until the next start: what went wrong is no step that could be tried again."""
        why = f"{type(error).__name__}: {error}"
        self._failure = AgentError(f"a fault of this program stopped the experiment until the next start ({why})")
        self._tell_trouble("following the rounds, until the next start", error, is_event=True)

    async def news(self) -> None:
        """Return when something was said or heard."""
        await self._news.wait()

    # --- what runs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive the core, for ever. Raises: what the journal fails with."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._look_at_members()
            task_status.started()
            while True:
                await self._step(self.member.tick)
                self._look_around()
                self._look_at_members()
                with trio.move_on_after(min(TICK_S, self.plan.lease_s / 4)):
                    await self._news.wait()
                if self._failure is not None:
                    raise self._failure

    async def _step(self, act: Callable[[float], list[Action]]) -> None:
        async with self._lock:
            self.member.unix_s = self._ports.unix_s()
            actions = act(trio.current_time())
            await self._record([action.entry for action in actions if isinstance(action, Say)])
        for action in actions:
            if not isinstance(action, Say) and self._nursery is not None:
                self._nursery.start_soon(self._carry_out, action)

    async def _record(self, entries: Sequence[Entry]) -> None:
        """Make entries durable, then let others hear of them. One that failed ends it all: its place must stay free."""
        if self._failure is not None:
            raise self._failure
        if not entries:
            return
        with trio.CancelScope(shield=True):  # what the core has said is in its book already
            try:
                await trio.to_thread.run_sync(self._journal.append, entries)
            except (StorageError, OSError) as error:
                self._failure = error
                raise
            finally:
                self._wake()
        for entry in entries:
            self._count(entry)
        self.stir()

    def _count(self, entry: Entry) -> None:
        self._durable.add(entry.cid)
        self.room.take(entry)

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _look_around(self) -> None:
        """Tell what came to an end, and stop a training that is for nothing."""
        current = self.member.current()
        is_cancelled = self.book.cancelled() is not None
        if self._training is not None and (self.member.is_vain(self._training[0]) or is_cancelled):
            self._training[1].cancel()
        for number in range(self._told_round + 1, current):
            kind, fields = ending_of(self.book, number)
            self._ports.emit(kind, experiment=str(self.cid), title=self.plan.title, round=number, **fields)
        self._told_round = max(self._told_round, current - 1)
        if self.is_over and not self._is_ended:
            self._is_ended = True
            text = end_of(self.book, self.is_borne)
            self._ports.emit("experiment_ended", experiment=str(self.cid), title=self.plan.title, text=text)

    # --- other members

    def _look_at_members(self) -> None:
        """Ask those who are members now; show these what is to be seen, and others no more."""
        self.follow_members()
        self._note_readers()

    def _note_readers(self) -> None:
        if (now := self.readers(self.book.current())) != self.keep.readers and self._nursery is not None:
            self.keep.readers, self.keep.ever = now, {*self.plan.members, *self.book.let_in(), *now}
            self._nursery.start_soon(self._show_again)

    async def _show_again(self) -> None:
        results = [self.book.result(number) for number in range(1, self.book.current())]
        async with self._showing:
            try:
                await trio.to_thread.run_sync(self.keep.show_again, [one for one in results if one is not None])
            except (AgentError, StorageError, OSError) as error:
                self._trouble = f"showing results to members: {error}"
                log.warning("round_trouble", experiment=str(self.cid), what="showing", error=repr(error))

    def desk(self, asker: PeerId, *, may_wait: bool = True) -> Desk:
        """What answers a member that asks; at once, where it may not wait for news."""
        self.call_back(asker)
        return Desk(self.plan_entry, self._since, self.news, self._here, may_wait)

    def _here(self) -> Iterator[Where]:
        return members_here(self._ports.network, self.told())

    def _heard_out(self) -> set[PeerId]:
        ends = {one.entry.author: one.entry.sequence for one in self.aside}
        return self.room.full() | {peer for peer, end in ends.items() if self.book.height(peer) >= end}

    def _since(self, known: Known) -> Iterator[Entry]:
        return lacking(self.book, known, self._durable)

    async def _hear(self, entries: Sequence[Entry]) -> bool:
        """Take in what was told; is any of it known now? Raises: Malformed, for what no member may say."""
        async with self._lock:  # another may have told the same meanwhile
            new = [entry for entry in entries if entry.cid not in self.book and not self.room.is_full(entry.author)]
            new = without(new, self.aside)
            if not new:
                return any(entry.cid in self.book for entry in entries)
            linked = self.hearing = list(filter(is_linked, new))
            actions, wrong = self.member.receive([*self._unheard, *linked], trio.current_time())
            self._count_heard(self._unheard)
            said = [action.entry for action in actions if isinstance(action, Say)]
            self.hearing = ()
            await self._record([*(entry for entry in linked if entry.cid in self.book), *said])
        for action in actions:
            if not isinstance(action, Say) and self._nursery is not None:
                self._nursery.start_soon(self._carry_out, action)
        if wrong:
            raise wrong[0]
        if len(linked) < len(new):
            raise Malformed("what a member says names the one event before it, and this does not")
        return any(entry.cid in self.book for entry in entries)

    # --- what the core wants done

    async def _carry_out(self, action: Action) -> None:
        """Do it; what goes wrong is told, and it is tried again after a while."""
        self._note_readers()
        what = words(action)
        self._doing[what] = self._doing.get(what, 0) + 1
        try:
            await self._act(action)
        except Exception as error:  # noqa: BLE001 - a fault of ours, too, ends no other experiment with this one
            self._tell_trouble(what, error, is_event=not isinstance(action, Fetch))
            await trio.sleep(self._pause_s(action, error))
            self.member.failed(action)
        else:
            self._trouble = ""
        finally:
            self._doing[what] -= 1
            if not self._doing[what]:
                del self._doing[what]

    def _tell_trouble(self, what: str, error: BaseException, *, is_event: bool) -> None:
        self._trouble = f"{what}: {error}"
        is_fault = not isinstance(error, AgentError | StorageError | ProtocolError | OSError | trio.TooSlowError)
        told = log.error if is_fault else log.warning
        told(
            "round_trouble",
            experiment=str(self.cid),
            what=what,
            error=repr(error),
            exc_info=error if is_fault else None,
        )
        if is_event:
            code = getattr(error, "code", type(error).__name__)
            fields: dict[str, Any] = {"experiment": str(self.cid), "what": what, "code": code, "text": str(error)}
            self._ports.emit("round_trouble", **fields)

    def _pause_s(self, action: Action, error: Exception) -> float:
        """Until it is tried again. What came, and is no update, is looked at ever less: it stays what it is."""
        if not isinstance(action, Fetch):
            return min(max(2.0, self.plan.lease_s / 2), LONGEST_RETRY_S)
        if not isinstance(error, _NO_UPDATE):
            return 2 * FIRST_RETRY_S
        self._unfit[action.submission] += 1
        return min(2 * FIRST_RETRY_S * 4.0 ** (self._unfit[action.submission] - 1), LONGEST_LOOK_S)

    async def _act(self, action: Action) -> None:
        match action:
            case Fetch():
                await self._fetch_update(action)
            case Train():
                await self._train_within_budget(action.round, partial(self._train, action))
            case Compute():
                await self._compute(action)
            case Evaluate():
                await self._evaluate(action)
            case Prepare() | Deal() | Inspect() | Reveal() | Draw():
                await self._answer(action)

    async def _fetch_update(self, action: Fetch) -> None:
        async with self._turns.turn(action.author):
            said = self.book.get(action.submission)
            if said is None:  # the noise of a close
                n_most = await trio.to_thread.run_sync(limit_of, self._ports, self.plan)
                await self.fetch_file(action.update, n_most, self.readers(self.book.current()))
            else:
                submit = cast(Submit, said.event)
                await self.bring_update(submit.update, submit.sealed, submit.round)
                if self.book.secure is not None:
                    await trio.to_thread.run_sync(self.secrets.check_size, submit.round, action.update)
        await self._step(partial(self.member.fetched, action.submission))

    async def _answer(self, action: Prepare | Deal | Inspect | Reveal | Draw) -> None:
        """What needs this node's secrets, one at a time."""
        async with self._own:
            if isinstance(action, Draw):
                await self.fetch_file(self.plan.initial)
                noise = await trio.to_thread.run_sync(self.secrets.draw, action.round)
                say = partial(self.member.drawn, action.round, action.term, noise)
            elif isinstance(action, Inspect):
                found = await trio.to_thread.run_sync(self.secrets.complaints, self.book.copy(), action)
                say = partial(self.member.inspected, action.gather, found)
            else:
                event = await trio.to_thread.run_sync(self.secrets.answer, self.book.copy(), action)
                say = partial(self.member.answer, event)
        await self._step(say)

    async def _compute(self, action: Compute) -> None:
        base = await self.bring_base(action.round)
        book = self.book.copy()
        final = book.final(action.round)
        if final is None or final.cid != action.close:
            return  # another one is final by now, and asked for
        await self.bring_bases(*older(book, cast(Close, final.event), base.tensors))
        found = await trio.to_thread.run_sync(self._recompute, book, action.round, cast(Close, final.event))
        if found is not None:
            refused = refusals(found.outcome)
            say = partial(self.member.computed, action.round, found.result, refused=refused, close=action.close)
            await self._step(lambda now_s: say(now_s=now_s))
            if self.book.secure is not None:
                async with self._own:
                    await trio.to_thread.run_sync(self.secrets.forget, action.round)

    def _recompute(self, book: Book, number: int, close: Close) -> Computed | None:
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            shelf, out = Shelf(self._ports, folder), folder / "out"
            out.mkdir()
            with self._ports.store.lease():
                aggregating = Offloaded(self._device, folder) if self._device is not None else None
                found = recompute(book, number, close, shelf, out, aggregating)
                if close.noise is not None:
                    self.secrets.charge(book, number, found.result)
                self.keep.result(found)
            return found
        finally:
            shutil.rmtree(folder, ignore_errors=True)
