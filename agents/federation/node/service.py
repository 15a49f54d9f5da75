"""The experiments of a node: read from their journals at the start, run side by side, and answered for.

A journal is `<experiment>` in the folder, its plan first; `<experiment>.json` says what this node trains on, which is
nobody else's business and stands in no plan. How one goes: see `forgetting`.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import structlog
import trio

from agents.adapters.announce import Turnstile
from agents.adapters.ports import Ports
from agents.errors import AgentError, unwrapped
from agents.federation.node.device import Device
from agents.federation.node.forgetting import Forgotten, brought_back, clear, is_marked, mark, marked
from agents.federation.node.journal import Journal
from agents.federation.tasks import Engine
from agents.journal import read
from protocols import rounds_sync as sync
from protocols.entry import Entry
from protocols.errors import Remote
from protocols.net import Stream
from protocols.rounds import read_plan
from protocols.rounds_sync import Desk
from storage.cid import Cid
from storage.durable import make_folder, write_file
from storage.errors import StorageError
from storage.keys import PeerId

if TYPE_CHECKING:
    from agents.federation.node.experiment import Experiment
    from agents.federation.node.sifting import Aside

MAX_EXPERIMENTS: Final = 256
ASK_EVERY_S: Final = 0.1
ASK_BURST: Final = 200
HELD_OF_ONE: Final = 2  # questions of one peer about one experiment, open until there is news: each is looked at then

log = structlog.get_logger(__name__)


class UnknownExperiment(AgentError):
    """There is no such experiment here. See those there are: covey fl status. To take part: covey fl join CID."""

    code = "unknown_experiment"


class NoMember(AgentError):
    """The plan does not name this node among its members. Ask who made it for another plan."""

    code = "no_member"


class TooManyExperiments(AgentError):
    """This node takes part in as many experiments as it can. Let go of one that is over: covey fl forget EXPERIMENT."""

    code = "too_many_experiments"


class UnreadJournal(AgentError):
    """What this node knew of the experiment could not be read when it started. Put back a copy, and start again."""

    code = "unread_journal"


class _Local(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    data: str | None = None
    rank: int = 0


class _Life:
    """What runs an experiment."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()


class Rounds:
    """All experiments of a node.

    Args:
        engine: trains, where a task asks for it.
        device: where large rounds are aggregated.
    """

    def __init__(
        self, ports: Ports, folder: Path, scratch: Path, engine: Engine | None = None, device: Device | None = None
    ) -> None:
        self._ports = ports
        self._folder = folder
        self._scratch = scratch
        self.engine: Final = engine
        self._device = device
        self._experiments: dict[Cid, Experiment] = {}
        self._journals: dict[Cid, Journal] = {}
        self._lives: dict[Cid, _Life] = {}
        self._nursery: trio.Nursery | None = None
        self._adding = trio.Lock()
        self._turnstile = Turnstile(ASK_EVERY_S, ASK_BURST)
        self._n_asked: Counter[tuple[PeerId, Cid]] = Counter()  # questions that are being answered

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every experiment, and answer members, for ever."""
        try:
            await trio.to_thread.run_sync(self._start)
            self._ports.network.serve(sync.PROTOCOL, self._handle)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for one in self._experiments.values():
                    self._begin_life(nursery, one)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for journal in self._journals.values():
                journal.close()
            self._journals.clear()
            self._lives.clear()

    def all(self) -> "list[Experiment]":
        """Every experiment, those that are not over first."""
        return sorted(self._experiments.values(), key=lambda one: (one.is_over, one.plan.created_unix_s, one.cid))

    def get(self, cid: Cid) -> "Experiment":
        """Raises: UnknownExperiment."""
        return self._experiments[cid] if cid in self._experiments else self._none(cid)

    def _none(self, cid: Cid) -> NoReturn:
        raise UnknownExperiment(f"there is no experiment {cid} here. To take part: covey fl join {cid} --from PEER")

    async def follow(self, plan: Entry, data: Path | None = None, rank: int = 0) -> "Experiment":
        """Take part in what a plan describes, from now on; without `data`, without training. Durable when it returns.

        `rank`: what to train of an adapter, where the plan lets participants choose; 0 for the plan's.

        Raises: Malformed, BadOption, CannotAggregate, NoMember, TooManyExperiments, StorageError, OSError.
        """
        async with self._adding:
            known = self._experiments.get(plan.body_cid)
            if known is not None:
                if data is not None:
                    await trio.to_thread.run_sync(self._note_local, known.cid, data, rank)
                    known.data, known.rank = data, rank
                return known
            found = read_plan(plan)
            if self._ports.identity.peer_id not in found.members and found.let_in is None:
                raise NoMember("")
            if len(self._experiments) >= MAX_EXPERIMENTS or self._nursery is None:
                raise TooManyExperiments(
                    f"there is room for {MAX_EXPERIMENTS} experiments here, and no more. See those that are over with "
                    "covey fl status, and let go of one: covey fl forget EXPERIMENT"
                )
            with trio.CancelScope(shield=True):
                made = await trio.to_thread.run_sync(self._begin, plan, data, rank)
            self._experiments[made.cid] = made
            self._begin_life(self._nursery, made)
        self._ports.emit("experiment_followed", experiment=str(made.cid), title=made.plan.title)
        return made

    def _begin(self, plan: Entry, data: Path | None, rank: int) -> "Experiment":
        self._check(plan)
        make_folder(self._folder)
        if is_marked(self._folder, plan.body_cid):
            clear(self._ports, self._folder, plan.body_cid, self._holders())
        if data is not None:
            self._note_local(plan.body_cid, data, rank)
        path = self._folder / str(plan.body_cid)
        try:
            journal, entries = brought_back(self._folder, plan) or (Journal.create(path, plan), [plan])
        except FileExistsError:
            raise UnreadJournal(f"{path} holds what this node said in it, and could not be read: covey logs") from None
        self._journals[plan.body_cid] = journal
        return self._made(plan, entries[1:], journal, data, rank)

    async def forget(self, cid: Cid) -> Forgotten:
        """Have nothing to do with an experiment any more, which is not asked here whether others count on it.

        Nobody who asks brings it back: only who follows it again. Raises: UnknownExperiment, StorageError, OSError.
        """
        async with self._adding:
            one = self._experiments.get(cid)
            if one is None and not await trio.to_thread.run_sync(is_marked, self._folder, cid):
                return self._none(cid)
            with trio.CancelScope(shield=True):
                if one is not None:
                    await trio.to_thread.run_sync(mark, self._folder, cid, one.shown_to)
                    del self._experiments[cid]
                    life = self._lives.pop(cid)
                    life.scope.cancel()
                    await life.over.wait()
                    await one.let_go()
                    self._journals.pop(cid).close()
                found = await trio.to_thread.run_sync(clear, self._ports, self._folder, cid, self._holders())
        self._ports.emit("experiment_forgotten", experiment=str(cid), title=one.plan.title if one is not None else "")
        return found

    def _holders(self) -> dict[str, Collection[PeerId]]:
        return {pin: one.shown_to for one in self._experiments.values() for pin in (one.keep.pin, one.keep.own_pin)}

    def _begin_life(self, nursery: trio.Nursery, one: "Experiment") -> None:
        self._lives[one.cid] = life = _Life()
        nursery.start_soon(self._live, one, life)

    async def _live(self, one: "Experiment", life: _Life) -> None:
        try:
            with life.scope:
                again: Experiment | None = one
                while again is not None:
                    again = await self._run(again)
        finally:
            life.over.set()

    async def _run(self, one: "Experiment") -> "Experiment | None":
        """Run it for ever; where it fails by a fault of this program, what goes on without the event that shows it."""
        try:
            await one.run()
        except Exception as error:
            if one.is_unwritten:
                raise  # all start again from what is on the disk
            one.stopped(unwrapped(error))
        again = await trio.to_thread.run_sync(self._sifted, one, abandon_on_cancel=True)  # it writes nothing
        if again is None or self._experiments.get(one.cid) is not one:
            return None  # there is no such event; or it is forgotten
        again.data, again.rank = one.data, one.rank  # may have been set meanwhile
        self._experiments[one.cid] = again
        return again

    def _sifted(self, one: "Experiment") -> "Experiment | None":
        """Made again from what is on the disk, without the events that make it fail; None where no such are found."""
        journal = self._journals[one.cid]
        try:
            known = [entry for entry, _ in read(journal.path.read_bytes())][1:]
            return self._set_aside(one.plan_entry, known, journal, one.data, one.rank, one.hearing, one.aside)
        except Exception as error:  # noqa: BLE001 - what it failed with, and fails with again
            log.error("fault_not_set_aside", experiment=str(one.cid), error=repr(error))
            return None

    def _set_aside(
        self,
        plan: Entry,
        known: list[Entry],
        journal: Journal,
        data: Path | None,
        rank: int,
        heard: Sequence[Entry] = (),
        before: "Sequence[Aside]" = (),
    ) -> "Experiment | None":
        from agents.federation.node.sifting import sifted, without

        aside = sifted(plan, self._ports.identity, [*known, *heard], before)
        if len(aside) == len(before):
            return None
        for one in aside[len(before) :]:
            told = {"author": str(one.entry.author), "cid": str(one.entry.cid), "error": repr(one.error)}
            log.error("event_set_aside", experiment=str(plan.body_cid), **told)
        made = self._made(plan, without(known, aside), journal, data, rank)
        made.aside = aside
        return made

    def _check(self, plan: Entry) -> None:
        from agents.federation.plans.compatibility import check

        check(read_plan(plan))

    def _made(self, plan: Entry, entries: list[Entry], journal: Journal, data: Path | None, rank: int) -> "Experiment":
        # numpy comes with it: only who takes part pays for that
        from agents.federation.node.experiment import Experiment
        from agents.federation.node.neighbours import GossipExperiment

        kind = GossipExperiment if read_plan(plan).gossip is not None else Experiment
        return kind(self._ports, plan, entries, journal, self._scratch, data, self.engine, rank, self._device)

    def _note_local(self, experiment: Cid, data: Path, rank: int) -> None:
        write_file(self._local(experiment), msgspec.json.encode(_Local(str(data), rank)))

    def _local(self, experiment: Cid) -> Path:
        return self._folder / f"{experiment}.json"

    def _load(self) -> "Iterator[Experiment]":
        """What the journals tell; one that cannot be read is told of and left alone."""
        for cid, journal, entries in Journal.load(self._folder):
            if is_marked(self._folder, cid):
                journal.close()
                continue
            try:
                self._check(entries[0])
                one = self._loaded(entries[0], entries[1:], journal, *self._local_of(cid))
            except (Remote, AgentError) as error:  # of a plan that nobody could carry out, too
                journal.refuse(error)
                continue
            self._journals[cid] = journal
            yield one

    def _loaded(self, plan: Entry, known: list[Entry], journal: Journal, data: Path | None, rank: int) -> "Experiment":
        """What the journal tells, without what makes this program fail."""
        try:
            return self._made(plan, known, journal, data, rank)
        except (Remote, AgentError, StorageError, OSError):
            raise
        except Exception as error:
            found = self._set_aside(plan, known, journal, data, rank)
            if found is None:
                raise AgentError(f"a fault of this program keeps it from being read ({error!r})") from error
            return found

    def _start(self) -> None:
        """Read what there is, and finish what was being forgotten; one that will not go is told of, and tried again."""
        self._experiments = {one.cid: one for one in self._load()}
        for cid in marked(self._folder):
            try:
                clear(self._ports, self._folder, cid, self._holders())
            except (StorageError, OSError) as error:
                log.error("experiment_not_forgotten", experiment=str(cid), error=str(error))

    def _local_of(self, experiment: Cid) -> tuple[Path | None, int]:
        """What this node trains on, and which rank."""
        try:
            local = msgspec.json.decode(self._local(experiment).read_bytes(), type=_Local)
        except FileNotFoundError:
            return None, 0
        except (msgspec.ValidationError, msgspec.DecodeError):
            return None, 0
        return Path(local.data) if local.data is not None else None, local.rank

    async def _handle(self, stream: Stream) -> None:
        if not self._turnstile.admits(stream.peer, trio.current_time()):
            return
        with ExitStack() as stack:
            await sync.answer(stream, partial(self._desk, stack))

    def _desk(self, stack: ExitStack, peer: PeerId, cid: Cid) -> Desk | None:
        """Only members learn that there is such an experiment."""
        one = self._experiments.get(cid)
        if one is None or not one.is_told(peer):
            return None
        self._n_asked[peer, cid] += 1
        stack.callback(self._answered, peer, cid)
        return one.desk(peer, may_wait=self._n_asked[peer, cid] <= HELD_OF_ONE)

    def _answered(self, peer: PeerId, cid: Cid) -> None:
        self._n_asked[peer, cid] -= 1
        if not self._n_asked[peer, cid]:
            del self._n_asked[peer, cid]

    async def plan_from(self, peers: list[PeerId], cid: Cid) -> Entry:
        """The plan of an experiment, from the first of these peers that gives it. Raises: Remote, UnknownExperiment."""
        failure: Exception | None = None
        for peer in peers:
            try:
                return await sync.ask_plan(self._ports.network, peer, cid)
            except (Remote, trio.TooSlowError) as error:
                failure = failure or error
        raise UnknownExperiment(
            f"none of {len(peers)} peers gave the plan {cid}: name one who takes part with --from, who must be "
            f"connected, and whose plan names this node, or grants let it in{f' ({failure})' if failure else ''}"
        )
