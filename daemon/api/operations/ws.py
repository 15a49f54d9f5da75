"""Workspaces: begin one, let others in, say things, keep values."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from daemon.api.operation import Done, Nothing, Operation, Params, Progress, Result, reporting

if TYPE_CHECKING:
    from daemon.api.progress import Report
    from daemon.app import Node

Which = Annotated[str, Meta(max_length=200, description="The workspace: its CID, an end of it, or its title.")]
PeerText = Annotated[str, Meta(max_length=512, description="A member, or who becomes one: its peer id or name.")]
Right = Literal["read", "write", "run", "admin"]
KeyText = Annotated[str, Meta(max_length=128, description="The key: letters, digits and . _ - / in it.")]


class Create(Params, frozen=True):
    """What it is called."""

    title: Annotated[str, Meta(min_length=1, max_length=200, description="What its members call it.")]
    private: Annotated[bool, Meta(description="What members say is sealed for them.")] = False


class One(Params, frozen=True):
    """Which workspace."""

    workspace: Which


class Standing(Result, frozen=True):
    """A workspace, as far as this node knows. Two members whose `state` is one read the same out of it.

    Its entries take `memory_bytes`, about, of `max_memory_bytes`; `n_left_out` of what others told was not kept.
    """

    workspace: str
    title: str
    owner: str
    is_member: bool
    n_members: int
    n_entries: int
    n_void: int
    n_reached: int
    journal_bytes: int
    memory_bytes: int
    max_memory_bytes: int
    n_left_out: int
    heads: list[str]
    state: str
    is_private: bool


class JoinIt(Params, frozen=True):
    """Which workspace, and who has it."""

    workspace: Annotated[str, Meta(max_length=128, description="Its CID, as `covey ws invite` prints it.")]
    from_: (
        Annotated[str, Meta(max_length=512, description="A member: id, name or address (default: ask all connected).")]
        | None
    ) = None


class Invite(Params, frozen=True):
    """Whom, and what it may do there."""

    workspace: Which
    peer: PeerText
    can: Annotated[tuple[Right, ...], Meta(max_length=4, description="read, write, run, admin; commas between.")] = (
        "run",
        "write",
    )
    keys: Annotated[
        tuple[Annotated[str, Meta(max_length=128)], ...],
        Meta(max_length=16, description="Which keys: a key, or the beginning of some with * behind it."),
    ] = ("*",)
    weight: Annotated[int, Meta(ge=0, le=1000, description="Of its vote; 0 for none.")] = 1
    days: Annotated[float, Meta(ge=0.0, le=36500.0, description="For so long; 0 until it is revoked.")] = 0.0
    past: Annotated[bool, Meta(description="Of a private workspace it reads the whole past, not from now on.")] = False


class Invited(Result, frozen=True):
    """The grant is signed. The peer takes part with `join`."""

    workspace: str
    peer: str
    grant: str
    join: str


class Revoke(Params, frozen=True):
    """Whose grants end, and why."""

    workspace: Which
    peer: PeerText
    reason: Annotated[str, Meta(max_length=500, description="What the members read.")] = ""


class Members(Params, frozen=True):
    """Of which workspace, and what they may do with what."""

    workspace: Which
    key: (
        Annotated[str, Meta(max_length=128, description="Only what they may do with this key, and who votes on it.")]
        | None
    ) = None


class Granted(Result, frozen=True):
    """A grant. `until_unix_s`: when it ends, by itself or with one that it comes from; None where it has no end."""

    grant: str
    by: str
    can: list[str]
    keys: list[str]
    weight: int
    until_unix_s: int | None


class Member(Result, frozen=True):
    """Who may do what, by which grants; the owner by none. `weight` is its vote's; `has_joined`: it has said so;
    `is_reached`: this node heard from it."""

    peer: str
    name: str | None
    is_owner: bool
    has_joined: bool
    is_reached: bool
    weight: int
    can: list[str]
    keys: list[str]
    n_entries: int
    is_forked: bool
    grants: list[Granted]


class Log(Params, frozen=True):
    """Of which workspace, and how much."""

    workspace: Which
    last: Annotated[int, Meta(ge=0, le=1 << 20, description="So many of the last entries; 0 for all.")] = 50
    follow: Annotated[bool, Meta(description="Go on with what comes in.")] = False
    key: Annotated[str, Meta(max_length=128, description="Only what stands under this key.")] | None = None


class Entry(Result, frozen=True):
    """An entry. `code` says why it has no effect, where it has none."""

    id: str
    entry: str
    height: int
    author: str
    name: str | None
    sequence: int
    kind: str
    code: str
    recipient: str | None
    content: dict[str, Any]


class Say(Params, frozen=True):
    """What is said, under which key, and to whom."""

    workspace: Which
    text: Annotated[str, Meta(max_length=16384, description="What to say.")]
    key: Annotated[str, Meta(max_length=128, description="Under which key it stands.")] = "talk"
    to: Annotated[str, Meta(max_length=512, description="For this member to act on; all can read it.")] | None = None


class Said(Result, frozen=True):
    """It is signed and on the disk; others get it as they can be reached."""

    id: str
    entry: str
    height: int
    code: str


class Put(Params, frozen=True):
    """A key's value."""

    workspace: Which
    key: KeyText
    value: Annotated[str, Meta(max_length=65536, description="A text, or JSON with --typed.")]
    typed: Annotated[bool, Meta(description="The value is JSON: a number, a list, an object ...")] = False
    link: Annotated[str, Meta(max_length=128, description="Content that belongs to it, by CID.")] | None = None


class Drop(Params, frozen=True):
    """A key."""

    workspace: Which
    key: KeyText


class Get(Params, frozen=True):
    """Which key; none for all."""

    workspace: Which
    key: KeyText | None = None


class Value(Result, frozen=True):
    """A key's value, and who put it there. `is_withheld`: sealed, and this node has not the key."""

    key: str
    value: Any
    link: str | None
    author: str
    name: str | None
    id: str
    is_withheld: bool


class Export(Params, frozen=True):
    """What to write out, and where to."""

    workspace: Which
    out: Annotated[
        str,
        Meta(
            max_length=4096,
            description="Where to write it (default: the workspace's name, with .car).",
            extra={"path": True, "default_from": "workspace", "suffix": ".car"},
        ),
    ]


class Exported(Result, frozen=True, tag_field="type", tag="exported"):
    """The CAR is written. Of the content that entries link to, `n_missing` are not here whole."""

    workspace: str
    root: str
    state: str
    out: str
    n_entries: int
    n_blocks: int
    size_bytes: int
    n_missing: int


async def create(node: "Node", params: Create) -> Standing:
    """Begin a workspace that this node owns. Others come in by `covey ws invite`."""
    from daemon.workspaces import standing

    return standing(node, await node.workspaces.create(params.title, is_private=params.private))


async def ls(node: "Node", _params: Nothing) -> list[Standing]:
    """The workspaces of this node."""
    from daemon.workspaces import standing

    return [standing(node, one) for one in node.workspaces.all()]


async def join(node: "Node", params: JoinIt) -> Standing:
    """Take part in a workspace that this node is invited to."""
    from daemon.workspaces import join as join_it

    return await join_it(node, params)


async def invite(node: "Node", params: Invite) -> Invited:
    """Let a peer in: sign a grant for it."""
    from daemon.workspaces import invite as invite_it

    return await invite_it(node, params)


async def revoke(node: "Node", params: Revoke) -> Done:
    """End a peer's grants. What it has said so far, as this node knows it, still counts."""
    from daemon.workspaces import revoke as revoke_it

    return await revoke_it(node, params)


async def leave(node: "Node", params: One) -> Done:
    """Give this node's grants back. The history stays here; what it has said stays there."""
    from daemon.workspaces import leave as leave_it

    return await leave_it(node, params)


async def forget(node: "Node", params: One) -> Done:
    """Put a workspace aside on this node: leave it first. Joined again, it is as it was."""
    from daemon.workspaces import forget as forget_it

    return await forget_it(node, params)


async def members(node: "Node", params: Members) -> list[Member]:
    """Who may do what: anywhere, or with one key."""
    from daemon.workspaces import members_of

    return await members_of(node, params)


async def log(node: "Node", params: Log) -> AsyncIterator[Entry]:
    """The entries, in their order; with --follow what comes in too, as it comes."""
    from daemon.workspaces import log_of

    async with aclosing(log_of(node, params)) as entries:
        async for entry in entries:
            yield entry


async def say(node: "Node", params: Say) -> Said:
    """Say something. It is on the disk when this returns."""
    from daemon.workspaces import say as say_it

    return await say_it(node, params)


async def put(node: "Node", params: Put) -> Said:
    """Give a key a value."""
    from daemon.workspaces import put as put_it

    return await put_it(node, params)


async def drop(node: "Node", params: Drop) -> Said:
    """Take a key's value away."""
    from daemon.workspaces import drop as drop_it

    return await drop_it(node, params)


async def get(node: "Node", params: Get) -> list[Value]:
    """A key's value, or all keys'."""
    from daemon.workspaces import values_of

    return await values_of(node, params)


@reporting
async def export(node: "Node", params: Export, report: "Report") -> Exported:
    """Write history and content to one CAR, which can be verified offline."""
    from daemon.workspaces import export as export_it

    return await export_it(node, params, report)


OPERATIONS = (
    Operation(
        noun="ws",
        verb="create",
        summary="Begin a workspace.",
        params=Create,
        result=Standing,
        handler=create,
        arguments=("title",),
    ),
    Operation(
        noun="ws", verb="ls", summary="List the workspaces here.", params=Nothing, result=list[Standing], handler=ls
    ),
    Operation(
        noun="ws",
        verb="join",
        summary="Take part in a workspace.",
        params=JoinIt,
        result=Standing,
        handler=join,
        arguments=("workspace",),
    ),
    Operation(
        noun="ws",
        verb="invite",
        summary="Let a peer into a workspace, to do certain things.",
        params=Invite,
        result=Invited,
        handler=invite,
        arguments=("workspace", "peer"),
    ),
    Operation(
        noun="ws",
        verb="revoke",
        summary="End what a peer may do in a workspace.",
        params=Revoke,
        result=Done,
        handler=revoke,
        arguments=("workspace", "peer"),
    ),
    Operation(
        noun="ws",
        verb="leave",
        summary="Take part in a workspace no more.",
        params=One,
        result=Done,
        handler=leave,
        arguments=("workspace",),
    ),
    Operation(
        noun="ws",
        verb="forget",
        summary="Follow a workspace no more on this node.",
        params=One,
        result=Done,
        handler=forget,
        arguments=("workspace",),
    ),
    Operation(
        noun="ws",
        verb="members",
        summary="Show who may do what in a workspace.",
        params=Members,
        result=list[Member],
        handler=members,
        arguments=("workspace",),
    ),
    Operation(
        noun="ws",
        verb="log",
        summary="Show a workspace's history.",
        params=Log,
        result=Entry,
        handler=log,
        is_stream=True,
        arguments=("workspace",),
    ),
    Operation(
        noun="ws",
        verb="say",
        summary="Say something in a workspace.",
        params=Say,
        result=Said,
        handler=say,
        arguments=("workspace", "text"),
    ),
    Operation(
        noun="ws",
        verb="put",
        summary="Give a key of a workspace a value.",
        params=Put,
        result=Said,
        handler=put,
        arguments=("workspace", "key", "value"),
    ),
    Operation(
        noun="ws",
        verb="drop",
        summary="Take the value of a workspace's key away.",
        params=Drop,
        result=Said,
        handler=drop,
        arguments=("workspace", "key"),
    ),
    Operation(
        noun="ws",
        verb="get",
        summary="Show a key's value in a workspace, or all.",
        params=Get,
        result=list[Value],
        handler=get,
        arguments=("workspace", "key"),
    ),
    Operation(
        noun="ws",
        verb="export",
        summary="Write a whole workspace to one CAR.",
        params=Export,
        result=Progress | Exported,
        handler=export,
        is_stream=True,
        arguments=("workspace",),
    ),
)
