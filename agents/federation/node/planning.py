"""From what a user writes to a plan that holds: read, complete, and refused with a reason before anybody signs it."""

import re
import tomllib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from agents.aggregation.aggregate import shortfall
from agents.aggregation.registry import BEFORE, RULES
from agents.errors import AgentError
from agents.federation.events.book import MAX_EVENTS_OF_AUTHOR
from agents.federation.events.grants import capacity
from agents.federation.plans.compatibility import problems
from agents.federation.plans.options import options_of
from agents.federation.plans.privacy_accounts import rounds_borne
from agents.federation.results.outcome import recipe_of
from agents.federation.tasks import task_of
from protocols.errors import Malformed
from protocols.joining import LetIn
from protocols.rounds import MAX_MEMBERS, Plan, check_plan, content_of
from storage.cid import Cid
from storage.codecs import dag_cbor
from storage.errors import InvalidBlock
from storage.keys import PeerId

MAX_FILE_BYTES: Final = 1 << 20
EVENTS_OF_ROUND: Final = 10  # that one member says, as a rule at most, beside receipts
DIRECT, EACH = 32, 4  # whom grants let in beside a plan's members, where it does not say: by the author; by each other
KEYS: Final = frozenset(
    {
        "title", "task", "initial", "rounds", "min_participants", "selected", "deadline_s", "lease_s", "before", "rule",
        "server", "max_samples", "max_norm", "members", "deputies", "compression", "evaluated", "sealed", "secure",
        "privacy", "joining", "gossip", "needs", "chances",
        "let_in", "max_participants",
    }
)  # fmt: skip
# What can be written as a name, or as a table with its settings -> what the name is called in the table.
_TABLES: Final = {"task": "task", "rule": "rule", "server": "server", "compression": "codec", "gossip": "mixing"}
_SETTINGS: Final = ("secure", "privacy", "needs", "chances", "let_in")
_NAMES: Final = {"rounds": "n_rounds", "selected": "n_selected", "evaluated": "is_evaluated", "sealed": "is_sealed"}
_WRITTEN: Final = {field: name for name, field in _NAMES.items()}
_AT: Final = re.compile(r"`\$\.(\w+)([^`]*)`")


class BadPlan(AgentError):
    """The plan would not hold. Mend it, and make it again: a plan that is signed is never changed."""

    code = "bad_plan"


def read_file(path: Path) -> dict[str, Any]:
    """What stands in a TOML file. Raises: BadPlan, OSError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadPlan(f"{path} is over {MAX_FILE_BYTES} bytes")
    try:
        value = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path} is no TOML: {error}") from None
    if unknown := sorted(value.keys() - KEYS):
        raise BadPlan(f"{path}: there is no {unknown[0]!r} in a plan; there are: {', '.join(sorted(KEYS))}")
    for key in ("members", "deputies"):
        if not isinstance(names := value.get(key, []), list) or not all(isinstance(name, str) for name in names):
            raise BadPlan(f'{path}: {key} is a list of peers, by id or name, such as ["ada", "bob"]')
    for key in _SETTINGS:
        if not isinstance(value.get(key, {}), dict):
            raise BadPlan(f"{path}: {key} is a table with its settings: [{key}]")
    for key in _TABLES:
        if not isinstance(value.get(key, ""), str | dict):
            raise BadPlan(f"{path}: {key} is a name, or a table with its settings")
    if not isinstance(value.get("before", []), list) or not isinstance(value.get("initial", ""), str):
        raise BadPlan(f"{path}: before is a list of steps, and initial a file or a CID")
    return value


def bearing(wish: Mapping[str, Any], n_bad: int) -> dict[str, Any]:
    """The rule and the steps before it, those that bear a number of bad updates, with that number.

    Raises: BadPlan where none does.
    """
    named = [("rule", wish.get("rule", "fedavg")), *(("before", step) for step in wish.get("before", ()))]
    tables = [{field: step} if isinstance(step, str) else step for field, step in named]
    bears = [_bears_bad(table) for table in tables]
    if not any(bears):
        raise BadPlan("nothing in this plan bears a number of bad updates: name a --rule that does, or --before nnm")
    rule, *before = (table | {"n_bad": n_bad} if is_so else table for table, is_so in zip(tables, bears, strict=True))
    return {"rule": rule, "before": before}


def _bears_bad(table: object) -> bool:
    if not isinstance(table, dict):
        return False
    kind = RULES.get(str(table.get("rule"))) or BEFORE.get(str(table.get("before")))
    return kind is not None and "n_bad" in kind.__struct_fields__


def complete(wish: Mapping[str, Any], resolve: Callable[[str], PeerId], me: PeerId) -> dict[str, Any]:
    """A plan's fields, peers by their ids; the deputies are the members, this node first, where none are named."""
    fields = {_NAMES.get(key, key): value for key, value in wish.items() if key != "initial"}
    for key in _TABLES:
        if isinstance(fields.get(key), str):
            fields[key] = {_TABLES[key]: fields[key]}
    fields["before"] = tuple({"before": one} if isinstance(one, str) else one for one in fields.get("before", ()))
    if fields.get("privacy") is not None:
        fields.setdefault("is_evaluated", False)  # no noise covers what participants tell of their data
    members = [me if name == "me" else resolve(name) for name in fields.get("members", ())]
    deputies = [me if name == "me" else resolve(name) for name in fields.get("deputies", ())]
    fields["members"] = tuple(sorted({me, *members}))
    fields["deputies"] = tuple(deputies or [me, *(peer for peer in members if peer != me)])
    # Masks and buffers are bound to how many there are, or who they are; and without closes nobody is let out again.
    is_bound = "secure" in fields or "gossip" in fields or _is_fedbuff(fields)
    if fields.get("joining") == "granted" and "let_in" not in fields and not is_bound:
        fields["let_in"] = _usual_places(len(fields["members"]))
    if "task" not in fields:
        raise BadPlan("a plan names what is trained: [task] with task = 'softmax' and its settings")
    return fields


def _is_fedbuff(fields: Mapping[str, Any]) -> bool:
    rule = fields.get("rule")
    return isinstance(rule, dict) and rule.get("rule") == "fedbuff"


def _usual_places(n_members: int) -> dict[str, int]:
    """How many others grants let in where a plan does not say: few, and only as many as there can be."""
    usual = LetIn(direct=DIRECT, each=EACH, depth=1)
    if n_members + usual.most(n_members) > MAX_MEMBERS:
        usual = LetIn(direct=max(0, min(DIRECT, MAX_MEMBERS - n_members)))
    return {"direct": usual.direct, "each": usual.each, "depth": usual.depth}


def plan_of(fields: Mapping[str, Any], initial: Cid, unix_s: int) -> Plan:
    """The plan, when it holds. Raises: BadPlan, BadTask, CannotAggregate."""
    for name in ("deadline_s", "lease_s", "max_norm"):
        if isinstance(fields.get(name), int):
            fields = {**fields, name: float(fields[name])}
    if not fields.get("title"):
        raise BadPlan('not a plan: it has no title, which people call it by: title = "...", or --title')
    try:
        plan = check_plan(Plan(**{"title": "", **fields, "initial": initial, "created_unix_s": unix_s}))
    except (Malformed, TypeError) as error:  # told by the names that a user writes
        raise BadPlan(_AT.sub(lambda at: f"`{_WRITTEN.get(at[1], at[1])}{at[2]}`", str(error))) from None
    _check_signable(plan)
    task_of(plan.task)
    recipe_of(plan)
    if len(set(plan.deputies)) != len(plan.deputies) or not set(plan.deputies) <= set(plan.members):
        raise BadPlan("every deputy is a member, and named once")
    if plan.n_selected and not plan.n_selected // 2 < plan.min_participants <= plan.n_selected:
        raise BadPlan(
            f"a round of {plan.n_selected} selected needs a minimum of {plan.n_selected // 2 + 1} to {plan.n_selected} "
            f"participants, not {plan.min_participants}: over half of them make a close final"
        )
    if plan.min_participants > (n_most := capacity(plan)):
        raise BadPlan(f"{plan.min_participants} participants are needed, and there are {n_most} members at most")
    n_events = plan.n_rounds * (min(plan.n_selected or n_most, n_most) + EVENTS_OF_ROUND)
    if n_events > MAX_EVENTS_OF_AUTHOR:
        raise BadPlan(
            f"{plan.n_rounds} rounds may take a coordinator {n_events:,} events, a receipt for each update among them, "
            f"and of one member {MAX_EVENTS_OF_AUTHOR:,} are taken: make it fewer rounds, or select fewer"
        )
    if plan.deadline_s < plan.lease_s:
        raise BadPlan("the deadline is shorter than the lease: every round would be over before a deputy could act")
    if found := faults(plan):
        raise BadPlan("; ".join(found))
    if why := _shortfall(plan):
        raise BadPlan(why)
    return plan


def _shortfall(plan: Plan) -> str:
    """Why no round of a plan can come to anything, however many take part in it; or nothing."""
    n_most = _n_most(plan)
    why = _shortfall_of(plan, n_most)
    return why and f"no round can come to anything, for it has {n_most} updates at most: {why}"


def lean(plan: Plan) -> list[str]:
    """What is lost in a round of a plan that holds when as few take part as it allows; nothing where that is enough.

    Of those, as many may send what is refused as the plan's rule takes for bad.
    """
    n_least, n_bad = plan.min_participants, max(int(table.get("n_bad", 0)) for table in (plan.rule, *plan.before))
    for n_refused in (0, n_bad):
        if n_refused < n_least and (why := _shortfall_of(plan, n_least - n_refused)):
            so = f", of which {n_refused} may be refused," if n_refused else ","
            enough = (n for n in range(n_least, _n_most(plan) + 1) if not _shortfall_of(plan, n - n_refused))
            instead = "".join(f". With {n} its rule can do: see min_participants" for n in islice(enough, 1))
            said = f"a round of {n_least} updates, the minimum{so} leaves the tensors what they were: {why}"
            return [said + instead]
    return []


def brief(plan: Plan) -> list[str]:
    """Whether the plan's budget ends it before its rounds do. An accountant may take seconds for it."""
    n_most = _n_most(plan)
    if (n_borne := rounds_borne(plan, n_most)) == plan.n_rounds:
        return []
    return [
        f"its privacy budget bears {n_borne} of {plan.n_rounds} rounds, where {n_most} take part in each, and then it "
        "is over: for more, a larger multiplier or budget"
    ]


def _n_most(plan: Plan) -> int:
    return int(plan.rule.get("n_buffer") or plan.n_selected or capacity(plan))


def _shortfall_of(plan: Plan, n: int) -> str:
    """Why nothing comes of the updates of so many members, of the trusted one among them; or nothing."""
    trusted = plan.rule.get("trusted")
    others = (f"another {place}" for place in range(capacity(plan) - len(plan.members)))
    names = [*sorted(map(str, plan.members), key=lambda name: name != trusted), *others]
    return shortfall(recipe_of(plan), names[:n]) if plan.gossip is None else ""


def _check_signable(plan: Plan) -> None:
    """There are numbers in TOML that no block holds."""
    try:
        dag_cbor.decode(dag_cbor.encode(content_of(plan)))
    except InvalidBlock as error:
        raise BadPlan(f"this plan cannot be signed: {error}") from None


def faults(plan: Plan) -> list[str]:
    """Why a plan cannot be carried out, whoever signed it: for who makes one, and for who joins."""
    found = problems(plan)
    privacy = options_of(plan).privacy if not found else None
    if privacy is not None and privacy.noise == "examples":
        found = _faults_of_examples(plan)
    return found


def _faults_of_examples(plan: Plan) -> list[str]:
    if not (task := task_of(plan.task)).hides_examples:
        name = task.__struct_config__.tag
        return [f"privacy: {name} adds no noise to its examples' gradients: take central or distributed noise"]
    return []


def check_rank(plan: Plan, rank: int) -> None:
    """May a participant train an adapter of that rank? Raises: BadPlan, BadTask."""
    task_of(plan.task).check_rank(rank)
    if plan.compression is not None:
        raise BadPlan("compressed updates do not say their rank: in this plan all train the same. Leave out --rank")
