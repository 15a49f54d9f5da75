"""Workspaces as operations use them: texts in, what the room of workspaces knows out."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from agents.workspace.archive import Packed, pack
from agents.workspace.decisions import Ballot, count
from agents.workspace.duties import past_for, revocation
from agents.workspace.errors import NoSuchKey, NotGranted, UnknownWorkspace
from agents.workspace.history import Node as Placed
from agents.workspace.links import teller
from agents.workspace.space import Space
from agents.workspace.workspace import Workspace
from daemon import wall
from daemon.api.operation import Done
from daemon.api.operations import ws, ws_decide
from daemon.api.progress import in_thread
from daemon.asked import names, new_target, whom
from daemon.errors import NotFoundHere, Unfit
from protocols.errors import Malformed
from protocols.workspaces import entries as wire
from protocols.workspaces.entries import Grant, Put, Statement
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidCid, TooLarge
from storage.keys import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.api.progress import Report
    from daemon.app import Node

DAY_S: Final = 86400
KEY_FORM: Final = "1 to 128 of A-Z a-z 0-9 . _ - /"

S = TypeVar("S", bound=Statement)


def find(node: "Node", text: str) -> Workspace:
    """The workspace of that CID, of those first or last characters, or of that title, where it is no one else's.

    Raises: UnknownWorkspace, Unfit.
    """
    every = node.workspaces.all()
    ends = [one for one in every if len(text) >= 8 and (str(one.cid).startswith(text) or str(one.cid).endswith(text))]
    fits = ends or [one for one in every if one.space.history.root.title == text]
    if len(fits) > 1:
        raise Unfit(f"{text!r} fits {len(fits)} workspaces: give the whole CID")
    if fits:
        return fits[0]
    try:
        return node.workspaces.get(Cid.parse(text))
    except InvalidCid:
        raise UnknownWorkspace(f"there is no workspace {text!r} here") from None


def standing(node: "Node", one: Workspace) -> ws.Standing:
    """How it stands."""
    space = one.space
    return ws.Standing(
        workspace=str(one.cid),
        title=space.history.root.title,
        owner=str(space.history.owner),
        is_member=space.is_member(node.identity.peer_id),
        n_members=len(space.members()),
        n_entries=len(space.history),
        n_void=len(space.voids()),
        n_reached=len(one.reached),
        journal_bytes=one.n_journal_bytes,
        memory_bytes=one.room.n_bytes,
        max_memory_bytes=one.room.max_bytes,
        n_left_out=one.room.n_left_out,
        heads=[str(head) for head in space.history.heads()],
        state=str(space.state()),
        is_private=space.history.root.is_private,
    )


def _said(one: Workspace, placed: Placed) -> ws.Said:
    return ws.Said(id=str(placed.id), entry=str(placed.entry.cid), height=placed.height, code=one.space.code(placed))


def checked(says: S) -> S:
    """The same statement, where others will accept it. Raises: Malformed."""
    for text in says.keys if isinstance(says, Grant) else ():
        if not _fits(text, wire.Pattern):
            raise Malformed(f"{text!r} names no keys: {KEY_FORM}, and * at its end alone, for all that begin so")
    key = getattr(says, "key", None)
    if key is not None and not _fits(key, wire.Key):
        raise Malformed(f"{key!r} is no key: {KEY_FORM}")
    return wire.check(says)


def _fits(text: str, form: Any) -> bool:
    try:
        msgspec.convert(text, form)
    except msgspec.ValidationError:
        return False
    return True


def need(node: "Node", one: Workspace, key: str) -> None:
    """Refuse to write there what would be void, before it is signed. Raises: NotGranted, NoKey."""
    if not one.space.has_key() and not one.space.is_admin(node.identity.peer_id):
        one.space.current_key()
    if not one.space.may(node.identity.peer_id, "write", key):
        raise NotGranted(f"this node may not write {key!r} in {one.space.history.root.title!r}")


# --- who takes part


async def join(node: "Node", params: ws.JoinIt) -> ws.Standing:
    """Raises: UnknownWorkspace, NotGranted, InvalidCid, StorageError, OSError."""
    peers = await whom(node, params.from_)
    return standing(node, await node.workspaces.join(Cid.parse(params.workspace), peers))


async def invite(node: "Node", params: ws.Invite) -> ws.Invited:
    """Raises: UnknownWorkspace, NotGranted, Malformed, NotFoundHere."""
    from daemon.api.operations.peer import resolve

    one, peer, me = find(node, params.workspace), await resolve(node, params.peer), node.identity.peer_id
    until = int(wall.unix_s() + params.days * DAY_S) if params.days else 0
    fields: dict[str, Any] = {
        "audience": peer,
        "can": tuple(sorted(set(params.can))),
        "keys": tuple(sorted(set(params.keys))),
        "weight": params.weight,
        "until_unix_s": until,
    }
    checked(Grant(**fields))

    def act(space: Space) -> tuple[Statement, None, None]:
        proof = space.proof_for(me, Grant(**fields))
        if proof is None and me != space.history.owner:
            raise NotGranted(f"this node may not let others do that in {space.history.root.title!r}")
        if peer not in (named := space.history.named()) and len(named) >= wire.MAX_MEMBERS:
            raise wire.Full(f"grants name {len(named)} members of {space.history.root.title!r} already")
        link = proof.entry.cid if proof is not None else None
        return Grant(**fields, proof=link), None, None

    if params.past and not one.space.history.root.is_private:
        raise Unfit(f"{one.space.history.root.title!r} is not private: whoever is let in reads all of it")
    placed = await one.do(act, lambda space: past_for(space, peer) if params.past else ())
    return ws.Invited(
        workspace=str(one.cid),
        peer=str(peer),
        grant=str(placed.entry.cid),
        join=f"covey ws join {one.cid} --from {me}",
    )


async def revoke(node: "Node", params: ws.Revoke) -> Done:
    """Raises: UnknownWorkspace, NotGranted, NotFoundHere."""
    from daemon.api.operations.peer import resolve

    one, peer = find(node, params.workspace), await resolve(node, params.peer)
    me = node.identity.peer_id

    def mine(space: Space) -> list[Placed]:
        return [grant for grant in space.live_grants() if _audience(grant) == peer and space.can_revoke(me, grant)]

    def act(space: Space) -> tuple[Statement, None, None]:
        if not (grants := mine(space)):
            raise NotGranted(f"{peer} has no grant in {space.history.root.title!r} that this node may end")
        return revocation(space, grants, params.reason), None, None

    n_more = (len(mine(one.space)) - 1) // wire.MAX_GRANTS  # one entry ends so many
    await one.do(act)
    with suppress(NotGranted):  # another ended the rest meanwhile
        for _ in range(n_more):
            await one.do(act)
    left = [grant for grant in one.space.live_grants() if _audience(grant) == peer]
    more = f"; {len(left)} grants of others stand, which only those above them can end" if left else ""
    return Done(text=f"revoked: what {peer} says from now on has no effect{more}")


def _audience(grant: Placed) -> PeerId:
    return cast(Grant, grant.says).audience


async def leave(node: "Node", params: ws.One) -> Done:
    """Raises: UnknownWorkspace."""
    one, me = find(node, params.workspace), node.identity.peer_id
    grants = [grant for grant in one.space.live_grants() if _audience(grant) == me]
    if not grants:
        if me == one.space.history.owner:
            raise Unfit("this node owns the workspace, and cannot leave it")
        return Done(text="this node is no member of it")
    links = tuple(sorted(grant.entry.cid for grant in grants))
    for at in range(0, len(links), wire.MAX_GRANTS):
        await one.say(wire.Leave(grants=links[at : at + wire.MAX_GRANTS]))
    return Done(text="left: the others see it once they are reached. What is known stays here")


async def forget(node: "Node", params: ws.One) -> Done:
    """Raises: UnknownWorkspace, Unfit, OSError."""
    one, me = find(node, params.workspace), node.identity.peer_id
    if me != one.space.history.owner and one.space.is_member(me):
        raise Unfit("this node is a member of it, which others count on: covey ws leave it first")
    if hosted := node.crew.hosted(one.cid):
        raise Unfit(f"this node hosts {', '.join(hosted)} there: covey agent rm first")
    await node.workspaces.forget(one.cid)
    return Done(text=f"put aside: it is followed here no more. To have it back: covey ws join {one.cid}")


async def members_of(node: "Node", params: ws.Members) -> list[ws.Member]:
    """Who may do what, anywhere or with one key. Raises: UnknownWorkspace."""
    one, key = find(node, params.workspace), params.key
    voters = one.space.voters(key)
    history, forks, called = one.space.history, one.space.history.forks(), await names(node)
    rows = []
    for member in one.space.members():
        last, is_owner = history.last(member.peer), member.peer == history.owner
        rows.append(
            ws.Member(
                peer=str(member.peer),
                name=called.get(member.peer),
                is_owner=is_owner,
                has_joined=member.has_joined,
                is_reached=member.peer in one.reached,
                weight=voters.get(member.peer, 0),
                can=["everything"] if is_owner else list(member.rights if key is None else member.rights_at(key)),
                keys=["*"] if is_owner else sorted({key for g in member.grants for key in cast(Grant, g.says).keys}),
                n_entries=last.sequence + 1 if last is not None else 0,
                is_forked=member.peer in forks,
                grants=[_granted(one, grant) for grant in member.grants],
            )
        )
    return rows


def _granted(one: Workspace, placed: Placed) -> ws.Granted:
    says = cast(Grant, placed.says)
    return ws.Granted(
        grant=str(placed.entry.cid),
        by=str(placed.author),
        can=list(says.can),
        keys=list(says.keys),
        weight=says.weight,
        until_unix_s=one.space.until(placed) or None,
    )


# --- what is said


async def log_of(node: "Node", params: ws.Log) -> AsyncGenerator[ws.Entry]:
    """Raises: UnknownWorkspace."""
    one, last, seen = find(node, params.workspace), params.last, set[Cid]()
    while True:
        called = await names(node)
        n_news = one.n_news  # before the look: what is said while a row is on its way out is looked for again
        fresh = [placed for placed in one.space.history if placed.id not in seen]
        seen.update(placed.id for placed in fresh)
        shown = [placed for placed in fresh if params.key in (None, getattr(placed.says, "key", None))]
        for placed in shown[-last:]:
            yield _row(one, placed, called)
        if not params.follow:
            return
        last = 0
        await one.news(n_news)


def _row(one: Workspace, placed: Placed, called: Mapping[PeerId, str]) -> ws.Entry:
    recipient = placed.entry.recipient
    return ws.Entry(
        id=str(placed.id),
        entry=str(placed.entry.cid),
        height=placed.height,
        author=str(placed.author),
        name=called.get(placed.author),
        sequence=placed.sequence,
        kind=placed.entry.kind,
        code=one.space.code(placed),
        recipient=str(recipient) if recipient is not None else None,
        content={name: plain(value) for name, value in _shown(placed).items()},
    )


def _shown(placed: Placed) -> dict[str, Any]:
    """What an entry says, out of its seal; what cannot be opened here is left out, and said to be."""
    match placed.stated:
        case wire.Rekey(commitment=commitment, wraps=wraps):
            return {"commitment": commitment.hex(), "members": [bytes(peer) for peer, _ in wraps]}
        case wire.Give(audience=audience, keys=keys):
            return {"audience": bytes(audience), "keys": [link for link, _ in keys]}
    if placed.box is None:
        return dict(placed.entry.content)
    if placed.is_withheld:
        return {name: value for name, value in placed.entry.content.items() if name != "sealed"} | {"withheld": True}
    return wire.content_of(placed.says)


def plain(value: Any) -> Any:
    """A DAG-CBOR value as JSON shows it: links as their text, peers as their ids, other bytes in hex."""
    match value:
        case Cid():
            return str(value)
        case bytes():
            return _bytes_text(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case _:
            return value


def _bytes_text(value: bytes) -> str:
    try:
        return str(PeerId.of(PeerId(value).public_key))
    except ValueError:
        return value.hex()


async def say(node: "Node", params: ws.Say) -> ws.Said:
    """Raises: UnknownWorkspace, NotGranted, Malformed, NotFoundHere, StorageError."""
    from daemon.api.operations.peer import resolve

    one = find(node, params.workspace)
    says = checked(wire.Say(key=params.key, text=params.text))
    need(node, one, params.key)
    recipient = await resolve(node, params.to) if params.to is not None else None
    return _said(one, await one.say(says, recipient))


async def put(node: "Node", params: ws.Put) -> ws.Said:
    """Raises: UnknownWorkspace, NotGranted, Malformed, InvalidCid, StorageError."""
    one = find(node, params.workspace)
    value: Any = params.value
    if params.typed:
        try:
            value = json.loads(params.value)
            dag_cbor.encode(value)
        except (ValueError, TooLarge, RecursionError) as error:
            raise Malformed(f"that is no JSON that an entry can hold: {error}") from None
    link = Cid.parse(params.link) if params.link is not None else None
    says = checked(Put(key=params.key, value=value, link=link))
    need(node, one, params.key)
    return _said(one, await one.say(says))


async def drop(node: "Node", params: ws.Drop) -> ws.Said:
    """Raises: UnknownWorkspace, NotGranted, Malformed, StorageError."""
    one = find(node, params.workspace)
    says = checked(wire.Drop(key=params.key))
    need(node, one, params.key)
    return _said(one, await one.say(says))


async def values_of(node: "Node", params: ws.Get) -> list[ws.Value]:
    """Raises: UnknownWorkspace, NoSuchKey."""
    one, called = find(node, params.workspace), await names(node)
    values = one.space.values()
    if params.key is not None and params.key not in values:
        raise NoSuchKey(f"{params.key!r} has no value in {one.space.history.root.title!r}")
    rows = []
    for key in sorted(values) if params.key is None else [params.key]:
        placed = values[key]
        says = cast(Put, placed.says)
        rows.append(
            ws.Value(
                key=key,
                value=plain(says.value),
                link=str(says.link) if says.link is not None else None,
                author=str(placed.author),
                name=called.get(placed.author),
                id=str(placed.id),
                is_withheld=placed.is_withheld,
            )
        )
    return rows


# --- what is decided


async def propose(node: "Node", params: ws_decide.Propose) -> ws_decide.Decision:
    """Raises: UnknownWorkspace, NotGranted, Malformed, StorageError."""
    one = find(node, params.workspace)
    says = checked(
        wire.Propose(
            key=params.key,
            text=params.text,
            options=params.options,
            rule=params.rule,
            quorum=params.quorum,
            closers=(node.identity.peer_id,),
            deadline_unix_s=int(wall.unix_s() + params.minutes * 60) if params.minutes else 0,
        )
    )
    need(node, one, params.key)
    return _decision(one, await one.say(says))


def _proposal(one: Workspace, text: str) -> Placed:
    fits = [node for node in one.space.proposals() if len(text) >= 4 and str(node.id).endswith(text)]
    fits = fits or [node for node in one.space.proposals() if text in (str(node.id), str(node.entry.cid))]
    if len(fits) != 1:
        raise NotFoundHere(f"{text!r} names {len(fits)} proposals. See them: covey ws decisions {one.cid}")
    return fits[0]


async def vote(node: "Node", params: ws_decide.Vote) -> ws_decide.Decision:
    """Raises: UnknownWorkspace, NotFoundHere, Unfit, NotGranted, StorageError."""
    one = find(node, params.workspace)
    proposal = _proposal(one, params.proposal)
    says = cast(wire.Propose, proposal.says)
    options, key = says.options, says.key
    if one.space.outcome(proposal) is not None:
        raise Unfit(f"it is closed, and counts no further votes. What came of it: covey ws decisions {one.cid}")
    if params.veto and says.rule != "veto":
        raise Unfit(f"its rule is {says.rule}, under which nobody can stop it; one can where it is veto")
    if unknown := [name for name in params.ranking if name not in options]:
        raise Unfit(f"{unknown[0]!r} is no option; there are: {', '.join(options)}")
    if node.identity.peer_id not in one.space.voters(key):
        raise NotGranted(
            f"this node has no vote on what stands under {key!r} in {one.space.history.root.title!r}; "
            f"who has: covey ws members {one.cid} --key {key}"
        )
    ranking = tuple(options.index(name) for name in params.ranking)
    await one.say(checked(wire.Vote(proposal=proposal.entry.cid, ranking=ranking, veto=params.veto)))
    return _decision(one, proposal)


async def close(node: "Node", params: ws_decide.CloseIt) -> ws_decide.Decision:
    """Raises: UnknownWorkspace, NotFoundHere, NotGranted, StorageError."""
    one = find(node, params.workspace)
    proposal = _proposal(one, params.proposal)
    if node.identity.peer_id not in cast(wire.Propose, proposal.says).closers:
        raise NotGranted(f"{proposal.author} made this proposal, and closes it")
    if one.space.outcome(proposal) is None:
        await one.say(wire.Close(proposal=proposal.entry.cid))
    return _decision(one, proposal)


def decisions_of(one: Workspace) -> list[ws_decide.Decision]:
    """What was proposed, and what came of it."""
    return [_decision(one, proposal) for proposal in one.space.proposals()]


def _decision(one: Workspace, proposal: Placed) -> ws_decide.Decision:
    says, outcome = cast(wire.Propose, proposal.says), one.space.outcome(proposal)
    voters = one.space.voters(says.key)
    votes = [(placed.author, cast(wire.Vote, placed.says)) for placed in one.space.votes(proposal)]
    ballots = {author: Ballot(vote.ranking, vote.veto) for author, vote in votes}
    shown = outcome or count(says.rule, len(says.options), ballots, voters, says.quorum)
    is_chosen = outcome is not None and outcome.chosen is not None
    return ws_decide.Decision(
        id=str(proposal.id),
        key=says.key,
        text=says.text,
        rule=says.rule,
        options=list(says.options),
        is_open=outcome is None,
        chosen=says.options[cast(int, shown.chosen)] if is_chosen else None,
        why=shown.why if outcome is not None else "open",
        tally=list(shown.tally),
        n_voters=len(voters),
    )


async def export(node: "Node", params: ws.Export, report: "Report") -> ws.Exported:
    """Raises: UnknownWorkspace, NotFoundHere, TargetExists, StorageError."""
    one, target = find(node, params.workspace), new_target(params.out)
    root, entries = one.space.history.root_entry, [placed.entry for placed in one.space.history.blocks()]

    may_tell = teller(node.identity.peer_id, node.roots, node.catalog.peers.flock)

    def write(on_bytes: "Callable[[int], None]") -> tuple[Packed, Cid]:
        space = Space.of(root, entries)  # folded again here: the workspace's own may change meanwhile
        with node.store.lease():
            return pack(node.store, space, target, may_tell, on_bytes, node.identity.peer_id), space.state()

    packed, state = await in_thread(write, f"writing {target.name}", None, report)
    return ws.Exported(
        workspace=str(one.cid),
        root=str(packed.root),
        state=str(state),
        out=params.out,
        n_entries=packed.n_entries,
        n_blocks=packed.n_blocks,
        size_bytes=packed.n_bytes,
        n_missing=packed.n_missing,
    )
