"""What the members of an experiment sign: a plan, and then one event after the other.

A plan is the content of an entry of kind `plan` in the scope `rounds`; an experiment is known by the CID of its plan's
body, and every other event is an entry in the scope `rounds/<that CID>`. Events name each other by the CIDs of entry
blocks, as links: whoever walks from the last one finds everything, updates included.

agents/FEDERATION.md says who signs what when, and what follows from it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from protocols.content import content_of as content_of  # for those who sign
from protocols.content import read_content
from protocols.entry import Entry
from protocols.errors import Malformed, Unknown
from protocols.joining import MAX_PLACES, Chances, Has, LetIn
from storage.cid import DAG_PB, RAW, Cid
from storage.keys import PeerId

PLAN_KIND: Final = "plan"
PLAN_SCOPE: Final = "rounds"

MAX_MEMBERS: Final = 1024
MAX_ROUNDS: Final = 1 << 20
MAX_TERM: Final = 1 << 20
MAX_SAMPLES: Final = 1 << 40
MAX_STEPS: Final = 1 << 31
MAX_REASON_CHARS: Final = 500
MAX_VERDICT_CHARS: Final = 200
MAX_REFUSALS: Final = 64
MAX_DEPTH: Final = 8
MAX_SCOPES: Final = 64  # whose names are remembered: each event is held against its own

# Secure aggregation: points of Ed25519's group, SHA-256 digests, Shamir's shares below its order, two of them sealed.
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
SHARE_BYTES: Final = 32
SEALED_BYTES: Final = 2 * SHARE_BYTES + 16
PROOF_BYTES: Final = 64

Round = Annotated[int, Meta(ge=1, le=MAX_ROUNDS)]
Term = Annotated[int, Meta(ge=0, le=MAX_TERM)]
Peers = Annotated[tuple[PeerId, ...], Meta(max_length=MAX_MEMBERS)]
Links = Annotated[tuple[Cid, ...], Meta(max_length=MAX_MEMBERS)]
Weight = Annotated[float, Meta(gt=0.0, le=float(MAX_MEMBERS))]
Seconds = Annotated[float, Meta(ge=0.1, le=30 * 86400.0)]
UnixSeconds = Annotated[int, Meta(ge=0, le=1 << 40)]
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Points = Annotated[tuple[Key, ...], Meta(max_length=MAX_MEMBERS)]
Proof = Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Sealed = Annotated[bytes, Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
ShareOf = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
Settings = dict[Annotated[str, Meta(max_length=64)], Any]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained, by whom, and how the updates become one. Signed by who starts the experiment.

    task: what the participants' own factory makes ("lora", ...), with its settings.
    initial: the tensors that the first round starts from; possession: its author has them, see SPEC.md, "Rounds".
    min_participants: fewer updates than this make a round void; more than half of those selected.
    n_selected: how many of the joined take part in a round, by chance from a public seed; 0 for all.
    deadline_s: from the opening of a round; lease_s: how long a silent coordinator is waited for.
    before, rule, server: the recipe (agents.aggregation).
    max_samples: what a claimed number of samples counts at most; max_norm: of an update; 0 for no bound.
    is_sealed: are updates sealed to their round's members; false for files that these are given, and others could read.
    is_evaluated: do participants tell how each result does on data that they held out.
    secure, privacy, compression, gossip: what agents.federation.plans.options says; None for without.
    members: who may see and join, beside those whom grants let in; deputies: who coordinates, in order.
    joining: does every member train that says so, or only one that holds a grant, its author's or passed on from it?
    let_in: how many may be let in by grants whom the plan does not name; None for nobody.
    max_participants: of one round's list; 0 for as many as there are.
    needs: what a participant says that it has; chances: how the draw of n_selected is weighed; None for neither.
    """

    format: Literal[1] = 1
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    task: Settings
    initial: Cid
    n_rounds: Round = 1
    min_participants: Annotated[int, Meta(ge=1, le=MAX_MEMBERS)] = 1
    max_participants: Annotated[int, Meta(ge=0, le=MAX_MEMBERS)] = 0
    n_selected: Annotated[int, Meta(ge=0, le=MAX_MEMBERS)] = 0
    deadline_s: Seconds = 3600.0
    lease_s: Seconds = 30.0
    before: Annotated[tuple[Settings, ...], Meta(max_length=4)] = ()
    rule: Settings = msgspec.field(default_factory=lambda: {"rule": "fedavg"})
    server: Settings | None = None
    is_sealed: bool = True
    is_evaluated: bool = True
    secure: Settings | None = None
    privacy: Settings | None = None
    compression: Settings | None = None
    gossip: Settings | None = None
    max_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] = 1000
    max_norm: Annotated[float, Meta(ge=0.0)] = 0.0
    members: Annotated[tuple[PeerId, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    deputies: Annotated[tuple[PeerId, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    joining: Literal["members", "granted"] = "members"
    let_in: LetIn | None = None
    needs: Has | None = None
    chances: Chances | None = None
    created_unix_s: UnixSeconds = 0
    possession: Digest | None = None


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all events. `kind` is that of the entry."""

    kind: ClassVar[str]


class Join(Event, frozen=True):
    """I take part, from the next round on whose list of members is not closed yet.

    has: what I say that I have, of what the plan asks for; None where it asks for nothing.
    """

    kind = "join"

    has: Has | None = None


class Leave(Event, frozen=True):
    """I take part no more."""

    kind = "leave"


class Grant(Event, frozen=True):
    """This member may train. `proof` is a grant of mine that may be passed on; None for the plan's author.

    depth: how many times it may be passed on; less than that of its proof.
    expires_unix_s: until when it lets somebody in, as no grant above it has ended before; None for no end of its own.
        Who is in the list of a round by then stays.
    place: which of its issuer's places, for a peer that the plan does not name: its own, ever. None for one it names.
    """

    kind = "grant"

    audience: PeerId
    depth: Annotated[int, Meta(ge=0, le=MAX_DEPTH)] = 0
    proof: Cid | None = None
    expires_unix_s: UnixSeconds | None = None
    place: Annotated[int, Meta(ge=0, lt=MAX_PLACES)] | None = None


class Revoke(Event, frozen=True):
    """This grant is over, and all that were passed on from it. Signed by who stands above it."""

    kind = "revoke"

    grant: Cid


class Start(Event, frozen=True):
    """The first round's participants. Signed by the plan's author, once. `joins`: as in a close."""

    kind = "start"

    joined: Peers
    joins: Links = ()


class Open(Event, frozen=True):
    """I coordinate this round in this term. With a term over 0 it asks for promises."""

    kind = "open"

    round: Round
    term: Term


class Submit(Event, frozen=True):
    """My update of this round. `base` are the tensors that it was trained from.

    `sealed` is the update's file, sealed to the members: what others fetch, and find `update` in. None for a plain one.
    gather: of a masked update, the list of shares that says with whom it is masked.
    possession: I have all of the file that others fetch, so members may be shown it.
    """

    kind = "submit"

    round: Round
    base: Cid
    update: Cid
    n_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    n_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 1
    loss: float | None = None
    sealed: Cid | None = None
    gather: Cid | None = None
    possession: Digest | None = None


class Receipt(Event, frozen=True):
    """A coordinator has the submission and its bytes. Received, not admitted."""

    kind = "receipt"

    round: Round
    submission: Cid


class Promise(Event, frozen=True):
    """I countersign no close of a term before this one; the last that I did countersign, if any."""

    kind = "promise"

    round: Round
    term: Term
    vote: Cid | None = None


class Close(Event, frozen=True):
    """What the round consists of, and who takes part in the next. Final once over half of the selected countersign it.

    promises: for a term over 0, those of over half of the selected, which justify it. void: why it has no result.
    noise: under central noise, a file of it, which its coordinator drew for this list and nothing else; possession: it
        has all of that file.
    joins: where the plan asks what members have, the join of each in `joined` whose claims count, in that order.
    """

    kind = "close"

    round: Round
    term: Term
    submissions: Links
    joined: Peers
    promises: Links = ()
    void: Annotated[str, Meta(max_length=MAX_REASON_CHARS)] = ""
    noise: Cid | None = None
    joins: Links = ()
    possession: Digest | None = None


class Keys(Event, frozen=True):
    """My keys for a round's secure aggregation: to send me shares, to agree on masks with me.

    seed_point: of the seed that hides my update alone; who puts it together from shares sees that it is the one.
    """

    kind = "keys"

    round: Round
    for_shares: Key
    for_masks: Key
    seed_point: Key


class Gather(Event, frozen=True):
    """Whose keys, or shares, the round goes on with. Signed by the coordinator of the term.

    without: complaints that prove dealers false who are on no such list any more. With other ones it is another list.
    """

    kind = "gather"

    round: Round
    term: Term
    stage: Literal["keys", "shares"]
    said: Links
    without: Links = ()


class Shares(Event, frozen=True):
    """My two secrets, split for all whose keys were gathered: in the order of their ids, each sealed for its holder.

    digests: of each holder's share of my own seed, and of that of my mask key: a false share is known when it is told.
    seed_points, key_points: what commits me to both, as many as unmask: a false share is known by its holder.
    ephemeral: the key that seals them, which is used for nothing else; proof: I know what stands behind it.
    """

    kind = "shares"

    round: Round
    gather: Cid
    sealed: Annotated[tuple[Sealed, ...], Meta(max_length=MAX_MEMBERS)]
    digests: Annotated[tuple[tuple[Digest, Digest], ...], Meta(max_length=MAX_MEMBERS)]
    seed_points: Points
    key_points: Points
    ephemeral: Key
    proof: Proof


class Complain(Event, frozen=True):
    """What this dealer sealed for me are no shares of its secrets: whoever looks can open it, and see.

    shared: what my key for shares and the dealer's agree on; proof: that it is that.
    """

    kind = "complain"

    round: Round
    shares: Cid
    shared: Key
    proof: Proof


class Unmask(Event, frozen=True):
    """My answer to one final close: of who submitted, my share of the own seed; of who dropped out, of the mask key.

    Both in the order of ids. In a round there is one active set that a member answers for, ever.
    """

    kind = "unmask"

    round: Round
    close: Cid
    own_seeds: Annotated[tuple[ShareOf, ...], Meta(max_length=MAX_MEMBERS)]
    mask_keys: Annotated[tuple[ShareOf, ...], Meta(max_length=MAX_MEMBERS)]


class Vote(Event, frozen=True):
    """I countersign this close, and have every update that it lists. Of masked updates: of one set alone."""

    kind = "vote"

    round: Round
    term: Term
    close: Cid


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An update that was not admitted, and why."""

    peer: PeerId
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_VERDICT_CHARS)]


class Result(Event, frozen=True):
    """What I computed of a final close: the result's document, and which updates were refused (the first of them)."""

    kind = "result"

    round: Round
    close: Cid
    result: Cid
    refused: Annotated[tuple[Refusal, ...], Meta(max_length=MAX_REFUSALS)] = ()


class Score(Event, frozen=True):
    """How a round's result does on data that I held out of my training. My word alone: nothing is computed from it."""

    kind = "score"

    round: Round
    result: Cid
    n_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    loss: float | None = None
    accuracy: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None


class State(Event, frozen=True):
    """Under gossip: my model of a round, trained from my mean of the round before, and whom I give it to.

    before: the event that says that mean; None in the first round. weight: of the model, where sums are passed on; 1 in
    the first round, and else what that mean says. to: sorted. sealed: the tensors' file as members are given it;
    possession: I have all of that.
    """

    kind = "state"

    round: Round
    before: Cid | None
    tensors: Cid
    weight: Weight
    to: Peers
    n_samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    n_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 1
    loss: float | None = None
    sealed: Cid | None = None
    possession: Digest | None = None


class Unfit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A state that I was given and did not take, and why."""

    state: Cid
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_VERDICT_CHARS)]


class Mix(Event, frozen=True):
    """Under gossip: the mean that I made in a round, of my state and of those that I was given; and its weight."""

    kind = "mix"

    round: Round
    states: Links
    tensors: Cid
    weight: Weight
    unfit: Annotated[tuple[Unfit, ...], Meta(max_length=MAX_MEMBERS)] = ()


class Accuse(Event, frozen=True):
    """Two entries that one honest member cannot both have signed, or a receipt and a close that contradict it."""

    kind = "accuse"

    first: Cid
    second: Cid


class Cancel(Event, frozen=True):
    """The experiment ends here. Signed by the plan's author."""

    kind = "cancel"

    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)] = ""


EVENTS: Final = {
    event.kind: event
    for event in (
        Join,
        Leave,
        Grant,
        Revoke,
        Start,
        Open,
        Keys,
        Gather,
        Shares,
        Complain,
        Submit,
        Receipt,
        Promise,
        Close,
        Vote,
        Unmask,
        Result,
        Score,
        State,
        Mix,
        Accuse,
        Cancel,
    )
}
S = TypeVar("S", bound=msgspec.Struct)
_FILES: Final = frozenset({RAW, DAG_PB})


@lru_cache(maxsize=MAX_SCOPES)
def scope_of(experiment: Cid) -> str:
    """Where the events of an experiment stand."""
    return f"{PLAN_SCOPE}/{experiment}"


def read_event(entry: Entry, experiment: Cid) -> Event:
    """The event that an entry of this experiment is. Raises: Malformed; Unknown for what a later version may know."""
    if entry.scope != scope_of(experiment):
        raise Malformed(f"a {entry.kind} in {entry.scope} is no event of this experiment")
    if entry.kind not in EVENTS:
        raise Unknown(f"this node knows no event {entry.kind}")
    event = _read(entry.content, EVENTS[entry.kind])
    if isinstance(event, Submit) and not {event.base.codec, event.update.codec} <= _FILES:
        raise Malformed("a submission names what is no file")
    if isinstance(event, Close) and event.noise is not None and event.noise.codec not in _FILES:
        raise Malformed("a close names noise that is no file")
    if isinstance(event, State | Mix) and event.tensors.codec not in _FILES:
        raise Malformed(f"a {event.kind} names what is no file")
    if isinstance(event, Shares) and len(event.sealed) != len(event.digests):
        raise Malformed("shares have a digest each")
    return event


def read_plan(entry: Entry) -> Plan:
    """The plan that an entry is. Raises: Malformed."""
    if (entry.kind, entry.scope) != (PLAN_KIND, PLAN_SCOPE):
        raise Malformed(f"a {entry.kind} in {entry.scope} is no plan")
    return _read(entry.content, Plan)


def check_plan(plan: Plan) -> Plan:
    """The same plan, when others will accept it. Raises: Malformed."""
    return _read(content_of(plan), Plan)


def _read(content: Mapping[str, Any], form: type[S]) -> S:
    return read_content(content, form, f"a {form.__name__.lower()}", every_field=False)
