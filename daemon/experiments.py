"""Federated experiments as operations use them: texts in, what the room of federation knows out."""

from collections.abc import Collection, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import trio

from agents.errors import AgentError
from agents.federation.events.grants import NotGranted, in_words, may_join
from agents.federation.files.archive import Packed, Unpacked, pack, unpack
from agents.federation.files.audit import audit, verdict_of
from agents.federation.files.needs import needed, noises
from agents.federation.files.possession import possession
from agents.federation.files.shelf import LetGo, Shelf
from agents.federation.node.experiment import Experiment
from agents.federation.node.planning import (
    BadPlan,
    bearing,
    brief,
    check_rank,
    complete,
    faults,
    lean,
    plan_of,
    read_file,
)
from agents.federation.node.standing import state_of
from agents.federation.node.training import find_base
from agents.federation.plans.compatibility import limits, undecidable
from agents.federation.plans.privacy_accounts import beyond_budget, own_rounds_borne
from agents.federation.results.verify import Finding
from agents.federation.tasks import BadTask, FindBase, Task, task_of
from agents.federation.updates.tensors import BadTensors, canonical, read_layout
from daemon import wall
from daemon.abilities import has_of, in_claims
from daemon.api.operation import Progress
from daemon.api.operations import fl, fl_forget, fl_proof
from daemon.api.progress import in_thread
from daemon.asked import names, new_target, way_here, whom
from daemon.errors import NotFoundHere, Unfit
from protocols.entry import Entry, make_entry
from protocols.errors import Remote
from protocols.net import PeerInfo
from protocols.rounds import PLAN_KIND, PLAN_SCOPE, Join, Plan, content_of, read_plan
from storage.cid import Cid
from storage.errors import DiskFull, InvalidCid, StorageError, StoreFull
from storage.keys import PeerId
from storage.unixfs import COVEY_WEIGHTS, add_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.api.progress import Report
    from daemon.app import Node

MODEL_IDLE_S: Final = 60.0
HEAR_S: Final = 10.0  # of who is let in
MAX_LISTED: Final = 10
FIRST_NEWS_S: Final = 3.0  # of an experiment that is new here


def find(node: "Node", text: str) -> Experiment:
    """The experiment of that CID, or of those first or last characters where they are no one else's; also as `covey fl
    status` lists it, with an ellipsis before the last.

    Raises: UnknownExperiment, Unfit, InvalidCid.
    """
    return _known(node, text) or node.rounds.get(Cid.parse(text))


def listed(peers: Collection[PeerId], called: Mapping[PeerId, str]) -> str:
    """Peers in a line, by name where they have one here."""
    shown = [called.get(peer) or f"…{str(peer)[-8:]}" for peer in islice(peers, MAX_LISTED)]
    return ", ".join(shown) + (f" and {len(peers) - MAX_LISTED} more" if len(peers) > MAX_LISTED else "")


def _known(node: "Node", text: str) -> Experiment | None:
    """The same; nothing where there is none here. Raises: Unfit."""
    part = text.removeprefix("\N{HORIZONTAL ELLIPSIS}")
    all_here = node.rounds.all() if len(part) >= 8 else []
    fits = [one for one in all_here if str(one.cid).startswith(part) or str(one.cid).endswith(part)]
    if len(fits) > 1:
        raise Unfit(f"{text!r} fits {len(fits)} experiments: give the whole CID")
    return fits[0] if fits else None


# --- planning


async def make_plan(node: "Node", params: "fl.Plan", report: "Report") -> "fl.Planned":
    """Raises: BadPlan, BadTask, CannotAggregate, BadTensors, NotFoundHere."""
    from daemon.api.operations.peer import resolve

    wish = await trio.to_thread.run_sync(read_file, Path(params.file)) if params.file else {}
    wish |= _options(params, wish)
    if params.n_bad is not None:
        wish |= bearing(wish, params.n_bad)
    me = node.identity.peer_id
    given = {name for key in ("members", "deputies") for name in wish.get(key, ()) if isinstance(name, str)}
    peers = {name: await resolve(node, name) for name in sorted(given - {"me"})}
    fields = complete(wish, peers.__getitem__, me)
    task = await trio.to_thread.run_sync(task_of(fields["task"]).completed, _finder(node))
    fields["task"] = msgspec.json.decode(msgspec.json.encode(task))
    with _folder(node) as folder, node.store.lease():  # until the experiment holds its first tensors
        if (initial := wish.get("initial")) is None:
            initial = str(folder / "first")
            if task.starts_engine:
                report(Progress(step="having the engine make the first tensors", n_done=0, unit="files"))
            await task.first(folder / "first", _finder(node), node.rounds.engine)
        plan, n_params = await trio.to_thread.run_sync(_with_tensors, node, fields, initial, folder)
        entry = make_entry(node.identity, PLAN_KIND, PLAN_SCOPE, int(wall.unix_s()), [], content_of(plan))
        one = await node.rounds.follow(entry)
        await trio.to_thread.run_sync(_hold_initial, one)
        notes = await trio.to_thread.run_sync(lambda: [*limits(plan), *lean(plan), *brief(plan)])
    return fl.Planned(
        experiment=str(one.cid),
        title=plan.title,
        initial=str(plan.initial),
        n_params=n_params,
        n_members=len(plan.members),
        needs_grants=plan.joining == "granted",
        join=f"covey fl join {one.cid} --from {way_here(node)} --data PATH",
        limits=notes,
        undecidable=undecidable(plan),
    )


def _options(params: "fl.Plan", wish: dict[str, Any]) -> dict[str, Any]:
    """What the options say, in the file's terms."""
    given = {
        key: value
        for key in (
            "title", "initial", "rounds", "members", "deputies", "min_participants", "selected", "deadline_s",
            "lease_s", "rule", "before",
        )
        if (value := getattr(params, key)) not in (None, ())
    }  # fmt: skip
    if params.task is not None:
        given["task"] = {"task": params.task}
    if params.settings:
        task = given.get("task", wish.get("task", {}))
        task = {"task": task} if isinstance(task, str) else task
        given["task"] = task | dict(map(_setting, params.settings))
    return given


def _setting(text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not name or not mark:
        raise BadPlan(f"{text[:64]!r} is no setting: write NAME=VALUE")
    for form in (int, float):
        try:
            return name, form(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value, value)


def _with_tensors(node: "Node", fields: dict[str, Any], initial: str, folder: Path) -> tuple[Plan, int]:
    """The plan over its first tensors, which are stored, and how many numbers they hold."""
    try:
        cid = Cid.parse(initial)
    except InvalidCid:
        cid = None
    if cid is None:
        path = folder / "initial"
        try:
            canonical(Path(initial), path)
        except BadTensors as error:
            raise BadPlan(f"{initial} holds no tensors to begin with: {error}. It takes safetensors of F32") from None
    else:
        path = Shelf(node.adapters.ports, folder).path(cid)
    layout = read_layout(path)
    if why := task_of(fields["task"]).misfit(layout):
        raise BadPlan(f"the first tensors are not those of the task: {why}")
    added = add_path(node.store, path, COVEY_WEIGHTS) if cid is None else cid
    shown = possession(node.store, added, fields["members"])
    plan = plan_of(fields | {"possession": shown}, added, int(wall.unix_s()))
    return plan, layout.n_params


@contextmanager
def _folder(node: "Node") -> "Iterator[Path]":
    import tempfile

    with tempfile.TemporaryDirectory(dir=node.home.scratch) as name:
        yield Path(name)


def _hold_initial(one: Experiment) -> None:
    one.keep.hold(one.plan.initial)
    one.keep.show(one.plan.initial)


def _finder(node: "Node") -> FindBase:
    return partial(find_base, node.catalog)


# --- taking part


async def join(node: "Node", params: "fl.JoinIt") -> "fl.Joined":
    """Raises: UnknownExperiment, NoMember, NotGranted, UnmetNeeds, BadTask, NotFoundHere, Unfit, StorageError."""
    known = _known(node, params.experiment)
    cid = known.cid if known else Cid.parse(params.experiment)
    entry = known.plan_entry if known else await node.rounds.plan_from(await whom(node, params.from_), cid)
    data = Path(params.data) if params.data is not None else None
    if data is None and params.rank:
        raise Unfit("--rank is of what this node trains: say --data too, or leave it out and follow")
    plan = known.plan if known else read_plan(entry)
    if data is not None:
        task = task_of(plan.task)
        if why := faults(plan):
            raise BadPlan(f"this node does not train by this plan: {'; '.join(why)}")
        if params.rank:
            check_rank(plan, params.rank)
        await trio.to_thread.run_sync(_check_data, plan, task, data)
        await _bring_base(node, task)
    notes = await trio.to_thread.run_sync(_brief, plan, data) if data is not None else []
    has = await has_of(node, plan, data, params.has)
    one = await node.rounds.follow(entry)
    if known is None:
        with trio.move_on_after(FIRST_NEWS_S):
            await one.heard.wait()
    if data is not None:
        start = one.book.start()
        if one.plan.gossip is not None and start is not None and node.identity.peer_id not in start.joined:
            raise Unfit(
                f"it began without this node, and nobody comes in later. This node follows: covey fl status {cid}"
            )
        if one.is_over:
            raise Unfit(
                f"nobody trains in it any more ({state_of(one.book)}); this node follows: covey fl status {cid}"
            )
        one = await node.rounds.follow(entry, data, params.rank)
        await _let_in(one, node.identity.peer_id)
    joined = one.book.joins_now().get(node.identity.peer_id)
    if data is not None and (joined is None or cast(Join, joined.event).has != has):
        await one.do(lambda now_s: one.member.join(now_s, has))
    said = one.book.joins_now().get(node.identity.peer_id)
    return fl.Joined(
        experiment=str(one.cid),
        title=one.plan.title,
        task=str(one.plan.task.get("task")),
        is_training=said is not None,
        let_in_by=in_words(one.book, node.identity.peer_id, wall.unix_s()),
        says=in_claims(cast(Join, said.event).has) if said is not None else "",
        state=state_of(one.book),
        limits=notes,
    )


def _brief(plan: Plan, data: Path) -> list[str]:
    """Whether this node trains to the end, as far as its budget goes. Raises: BadTask, OSError."""
    task = task_of(plan.task)
    if plan.privacy is None or not task.has_examples_as_samples:
        return []
    n_examples = task.n_samples(data)
    n_borne = own_rounds_borne(plan, n_examples)
    if n_borne == plan.n_rounds:
        return []
    return [
        f"the plan's privacy budget bears {n_borne} of its {plan.n_rounds} rounds on {n_examples:,} examples: then this"
        " node leaves. Of more examples each round tells less"
    ]


def _check_data(plan: Plan, task: Task, data: Path) -> None:
    """Raises: BadTask, OSError."""
    task.check(data)
    if plan.privacy is None or not task.has_examples_as_samples:
        return
    if why := beyond_budget(plan, task.n_samples(data)):
        raise BadTask(f"{why}. Without --data this node follows")


async def _let_in(one: Experiment, me: PeerId) -> None:
    """Wait until this node has heard that a grant lets it in, where the plan does not name it. Raises: NotGranted."""
    if one.book.is_named(me):
        return
    with trio.move_on_after(HEAR_S):
        while not one.book.is_member(me) or not may_join(one.book, me):
            await one.news()
    if not one.book.is_member(me):
        raise NotGranted(
            f"no grant that lets in this node came from a member in {HEAR_S:.0f} s. It goes on asking: try again later,"
            f" or have {one.book.author} say: covey fl grant {one.cid} {me}"
        )


async def _bring_base(node: "Node", task: Task) -> None:
    """Where a task's base model is not here, bring it from a trusted peer that shares it. Raises: BadTask."""
    from agents.artifacts.models import Wish, pull_model
    from agents.artifacts.offers import find_offer
    from protocols.models import Ask

    if task.wanted_base is None:
        return
    try:
        await trio.to_thread.run_sync(find_base, node.catalog, task.wanted_base)
    except BadTask as missing:
        try:
            ports, base = node.adapters.ports, Cid.parse(task.wanted_base)
            found = await find_offer(ports, Ask(base=base))
        except InvalidCid:
            raise missing from None
        if found is None:
            raise BadTask(
                f"{missing}. No peer that you trust offers it either: covey peer trust PEER --kinds models, or bring it"
                " in from elsewhere"
            ) from None
        offer, offering = found
        wish = Wish(None, False, [*offering, *map(PeerInfo, node.network.peers())], MODEL_IDLE_S)
        row = await pull_model(ports, node.home.models, offer.manifest, wish, lambda step, n_done, n_total: None)
        node.events.note("model_pulled", {"name": row.name, "fingerprint": row.fingerprint, "source": row.source})
        await node.adapters.listen()


async def start(node: "Node", params: "fl.One") -> "fl.Started":
    """Raises: UnknownExperiment, Unfit, StorageError."""
    from daemon.standings import state  # which imports what is here

    one, called = find(node, params.experiment), await names(node)
    book = one.book
    if book.author != node.identity.peer_id:
        raise Unfit(f"{book.author} made this plan, and alone can start it")
    if book.cancelled() is not None:
        raise Unfit(f"it is {state(one)}: nothing starts in it any more. Make another: covey fl plan")
    if (begun := book.start()) is not None:
        return _started(f"it has started already: {state(one)}", one, begun.joined, called)
    joined = one.member.next_list(0)
    needed = max(one.plan.min_participants, len(joined) // 2 + 1)
    if len(joined) < needed:
        raise Unfit(f"{len(joined)} have joined, and {needed} are needed: covey fl status {one.cid}")
    await one.do(one.member.start)
    others = [peer for peer in one.told() if peer not in joined]
    later = "who joins now trains in a later round" if one.plan.gossip is None else "nobody comes in later"
    without = f" Without {listed(others, called)}: {later}." if others else ""
    text = f"started with {len(joined)} participants: {listed(joined, called)}.{without}"
    return _started(f"{text} To see it: covey fl watch {one.cid}", one, joined, called)


def _started(text: str, one: Experiment, joined: Collection[PeerId], called: Mapping[PeerId, str]) -> "fl.Started":
    others = [peer for peer in one.told() if peer not in joined]

    def rows(peers: Collection[PeerId]) -> list[fl.Called]:
        return [fl.Called(peer=str(peer), name=called.get(peer)) for peer in peers]

    return fl.Started(text=text, participants=rows(joined), others=rows(others))


# --- letting go


async def forget(node: "Node", params: "fl.One") -> "fl_forget.Forgotten":
    """Raises: UnknownExperiment, Unfit, InvalidCid, StorageError, OSError."""
    one, me = _known(node, params.experiment), node.identity.peer_id
    if one is not None and not one.is_over and not one.is_let_out:
        if one.book.author == me:
            raise Unfit(f"its members count on it: first covey fl cancel {one.cid}")
        if me in one.book.joined_now():
            raise Unfit(f"this node trains in it, and others count on that: first covey fl leave {one.cid}")
        if one.book.start() is not None and me in (one.book.roster(one.book.current()) or ()):
            raise Unfit(f"this node is still in round {one.book.current()}: wait for its end, see covey fl status")
    cid = one.cid if one is not None else Cid.parse(params.experiment)
    found = await node.rounds.forget(cid)
    title = one.plan.title if one is not None else ""
    return fl_forget.Forgotten(experiment=str(cid), title=title, **found._asdict())


# --- proving


async def verify(node: "Node", params: "fl_proof.Verify", report: "Report") -> "fl_proof.Verified":
    """Raises: NotFoundHere, UnknownExperiment, InvalidCar, Remote, StorageError."""
    path = Path(params.what)
    if path.is_absolute() and await trio.to_thread.run_sync(path.is_file):
        with node.store.lease():
            found = await trio.to_thread.run_sync(_read_car, node, path)
            return await _audited(node, *found, report)
    if path.suffix or len(path.parts) != 1:  # no CID has a dot or a slash
        raise NotFoundHere(f"there is no file {params.what}: `covey fl export` writes one")
    one = find(node, params.what)
    while True:
        if not params.is_offline:
            await bring_all(one, report, node.identity.peer_id)
        n_damaged = node.keeper.store.n_damaged()
        verified = await _audited(node, one.plan_entry, one.book.entries(), 0, report)
        if params.is_offline or node.keeper.store.n_damaged() <= n_damaged:
            return verified  # else blocks were found that the disk changed: members have them


async def _audited(
    node: "Node", plan: Entry, entries: list[Entry], n_lost: int, report: "Report"
) -> "fl_proof.Verified":
    def work(on_done: "Callable[[int], None]") -> list[Finding]:
        return audit(node.adapters.ports, plan, entries, node.home.scratch, lambda finding: on_done(1), n_lost)

    findings = await in_thread(work, "computing each round again", None, report, "findings")
    called = await names(node)
    return fl_proof.Verified(
        experiment=str(plan.body_cid),
        title=str(plan.content.get("title", "")),
        verdict=verdict_of(findings),
        n_events=len(entries),
        findings=[
            fl_proof.Finding(
                round=one.round,
                verdict=one.verdict,
                what=one.what,
                by=str(one.by) if one.by else None,
                name=called.get(one.by) if one.by else None,
            )
            for one in findings
        ],
    )


def _read_car(node: "Node", path: Path) -> Unpacked:
    """Its blocks go to the store, unpinned: what is there already is not written again."""
    from storage import car

    with path.open("rb", buffering=0) as file:
        found = car.import_car(
            node.store, file, file_bytes=path.stat().st_size, needs_whole_roots=False, scratch=node.home.scratch
        )
    if not found.roots:
        raise NotFoundHere(f"{path} names no root: it is no experiment that `covey fl export` wrote")
    return unpack(node.store, found.roots[0].cid)


@contextmanager
def _as_far_as_it_can_be_had() -> "Iterator[None]":
    """What cannot be brought is told as not decidable, or left out; that nothing can be is an error."""
    try:
        yield
    except (StoreFull, DiskFull, LetGo):
        raise
    except (AgentError, Remote, StorageError, trio.TooSlowError):
        pass


async def bring_all(one: Experiment, report: "Report", me: PeerId | None = None) -> None:
    """Fetch what verifying needs and is not here, as far as members have it, and `me` is one to whom it is sealed.

    Raises: StoreFull, DiskFull, LetGo.
    """
    if one.is_let_out:
        return  # nobody gives it anything any more
    with _as_far_as_it_can_be_had():
        await one.fetch_file(one.plan.initial)
    for noise in noises(one.book):
        with _as_far_as_it_can_be_had():
            await one.fetch_file(noise)
    wanted = needed(one.book, me)
    for n_done, files in enumerate(wanted):
        report(Progress(step="fetching updates", n_done=n_done, n_total=len(wanted), unit="updates"))
        with _as_far_as_it_can_be_had():
            await one.bring_update(*files)


async def export(node: "Node", params: "fl_proof.Export", report: "Report") -> "fl_proof.Exported":
    """Raises: UnknownExperiment, NotFoundHere, TargetExists, StorageError."""
    one, target = find(node, params.experiment), new_target(params.out)
    if not params.is_offline:
        await bring_all(one, report, node.identity.peer_id)
        await bring_results(one)

    def write(on_bytes: "Callable[[int], None]") -> Packed:
        with node.store.lease():
            return pack(node.store, one.keep, one.plan_entry, book, target, on_bytes)

    book = one.book.copy()
    packed = await in_thread(write, f"writing {target.name}", None, report)
    return fl_proof.Exported(
        experiment=str(one.cid),
        root=str(packed.root),
        out=params.out,
        n_events=packed.n_events,
        n_blocks=packed.n_blocks,
        size_bytes=packed.n_bytes,
        n_missing=packed.n_missing,
    )


async def bring_results(one: Experiment) -> None:
    """Fetch the results of the rounds that have one, as far as members have them.

    Raises: StoreFull, DiskFull, LetGo.
    """
    for number in range(1, one.book.current()):
        result = one.book.result(number)
        if result is not None and result != one.plan.initial:
            with _as_far_as_it_can_be_had():
                await one.bring_result(result)
