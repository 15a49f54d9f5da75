"""Ready-made plans: who works before, beside, above or after whom. Each is a plan like any other.

    sequential, pipeline   one after the other, each with what the one before it made
    broadcast              all at once, each with the same task
    request                one is asked, the other gets the reply and goes on with it
    feedback               one makes, the other judges, again until the judge says the word
    mapreduce              each item to a worker, all at once; one makes one thing of it all
    hierarchy              a tree: work goes down from each to those below, results go up
    mesh                   all at once, then all again, knowing what all said; the first sums up
    teams                  teams side by side, each a pipeline; the lead makes one thing of it all

Who does a step is an agent's name, or `role:ROLE` for any agent of a role.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from agents.workspace.runs.plan import MAX_BESIDE, BadRun, Loop, Plan, Step, read_plan, value_of

MODEL: Final = "model"
ROLE: Final = "role:"
MAX_DEPTH: Final = 8
MAX_ROUNDS: Final = 20

_WORD: Final = re.compile(r"[^\s(),;=+]+")
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


class Wish(NamedTuple):
    """What is to be planned. `agents`, and for a tree or teams their text, say who; see the topology for how."""

    task: str
    agents: tuple[str, ...] = ()
    lead: str = ""
    items: tuple[str, ...] = ()
    tree: str = ""
    rounds: int = 2
    until: str = "APPROVED"


class Tree(NamedTuple):
    """Somebody, and who is below."""

    who: str
    below: "tuple[Tree, ...]" = ()


def plan_for(topology: str, wish: Wish, title: str = "") -> Plan:
    """The plan. Raises: BadRun."""
    if topology not in TOPOLOGIES:
        raise BadRun(f"there is no topology {topology!r}; there are: {', '.join(TOPOLOGIES)}")
    if not wish.task:
        raise BadRun("say what is to be done: --task TEXT")
    steps = TOPOLOGIES[topology](wish)
    return read_plan(value_of(Plan(title=title or f"{topology} of {len(steps)}", steps=tuple(steps))))


def _step(name: str, who: str, prompt: str, *, beside: bool = False, loop: Loop | None = None) -> Step:
    name = _NO_NAME.sub("-", name)[:64]
    given = {"prompt": prompt}
    is_role = who.startswith(ROLE)
    try:
        return msgspec.convert(
            {
                "name": name,
                "do": MODEL,
                "input": given,
                "beside": beside,
                "role" if is_role else "agent": who.removeprefix(ROLE),
            }
            | ({"loop": msgspec.to_builtins(loop)} if loop is not None else {}),
            Step,
        )
    except msgspec.ValidationError as error:
        raise BadRun(f"{who!r} is no agent: {error}") from None


def _label(who: str) -> str:
    return who.removeprefix(ROLE)


def _some(wish: Wish, least: int) -> tuple[str, ...]:
    if not least <= len(wish.agents) <= MAX_BESIDE:
        raise BadRun(f"name {least} to {MAX_BESIDE} agents: --agents A,B")
    return wish.agents


def _lead(wish: Wish) -> str:
    if not wish.lead:
        raise BadRun("name who makes one thing of it all: --lead AGENT")
    return wish.lead


def pipeline(wish: Wish) -> list[Step]:
    """One after the other."""
    first, *rest = _some(wish, 1)
    steps = [_step(f"1-{_label(first)}", first, wish.task)]
    for number, who in enumerate(rest, 2):
        steps.append(_step(f"{number}-{_label(who)}", who, f"{wish.task}\n\nSo far:\n\n{{previous}}"))
    return steps


def broadcast(wish: Wish) -> list[Step]:
    """All at once."""
    return [
        _step(f"{number}-{_label(who)}", who, wish.task, beside=number > 1)
        for number, who in enumerate(_some(wish, 1), 1)
    ]


def request(wish: Wish) -> list[Step]:
    """The second is asked, the first goes on with the reply."""
    asker, asked = _two(wish)
    return [
        _step("request", asker, f"What do you need to know from {_label(asked)} for this? Ask it.\n\n{wish.task}"),
        _step("reply", asked, "{request}"),
        _step("answer", asker, f"{wish.task}\n\n{_label(asked)} replied:\n\n{{reply}}"),
    ]


def _two(wish: Wish) -> tuple[str, str]:
    if len(wish.agents) != 2:
        raise BadRun("name two agents: --agents A,B")
    return wish.agents[0], wish.agents[1]


def feedback(wish: Wish) -> list[Step]:
    """The first makes, the second judges."""
    maker, judge = _two(wish)
    loop = Loop(to="make", until=wish.until, max_times=_rounds(wish))
    return [
        _step("make", maker, f"{wish.task}\n\nWhat was said of your last attempt, if any:\n{{judge}}"),
        _step(
            "judge",
            judge,
            f"Task: {wish.task}\n\nIs this good? Answer {wish.until}, or say what is to be changed.\n\n{{make}}",
            loop=loop,
        ),
    ]


def _rounds(wish: Wish) -> int:
    if not 1 <= wish.rounds <= MAX_ROUNDS:
        raise BadRun(f"1 to {MAX_ROUNDS} rounds")
    return wish.rounds


def mapreduce(wish: Wish) -> list[Step]:
    """Items go round among the workers."""
    workers, lead = _some(wish, 1), _lead(wish)
    if not 1 <= len(wish.items) <= MAX_BESIDE:
        raise BadRun(f"name 1 to {MAX_BESIDE} items: --items X,Y")
    steps = []
    for place, item in enumerate(wish.items):
        who = workers[place % len(workers)]
        steps.append(_step(f"map-{place + 1}", who, f"{wish.task}\n\n{item}", beside=place > 0))
    return [*steps, _step("reduce", lead, f"{wish.task}\n\nMake one answer of these:\n\n{{previous}}")]


def mesh(wish: Wish) -> list[Step]:
    """All with all."""
    who = _some(wish, 2)
    steps = []
    for at in range(1, _rounds(wish) + 1):
        said = "" if at == 1 else "\n\nWhat all said before, you among them:\n\n{previous}"
        for place, name in enumerate(who):
            steps.append(_step(f"{at}-{place + 1}-{_label(name)}", name, wish.task + said, beside=place > 0))
    lead = wish.lead or who[0]
    return [*steps, _step("sum-up", lead, f"{wish.task}\n\nSum up what all agree on:\n\n{{previous}}")]


def teams(wish: Wish) -> list[Step]:
    """Teams as `name=a+b; other=c+d`."""
    lead, found = _lead(wish), _teams(wish.tree)
    steps: list[Step] = []
    for at in range(max(map(len, found.values()))):
        stage = [(team, members[at]) for team, members in found.items() if at < len(members)]
        for place, (team, who) in enumerate(stage):
            before = f"\n\nYour team so far:\n\n{{{team}-{at}}}" if at else ""
            prompt = f"You work in the team {team}. {wish.task}{before}"
            steps.append(_step(f"{team}-{at + 1}", who, prompt, beside=place > 0))
    last = "\n\n".join(f"{team}:\n{{{team}-{len(members)}}}" for team, members in found.items())
    return [*steps, _step("lead", lead, f"{wish.task}\n\nMake one answer of what the teams say:\n\n{last}")]


def _teams(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        team, _, members = part.partition("=")
        names = [member.strip() for member in members.split("+") if member.strip()]
        if not re.fullmatch(r"[A-Za-z0-9_]{1,32}", team.strip()) or not names or team.strip() in found:
            raise BadRun("teams are written name=AGENT+AGENT; other=AGENT")
        found[team.strip()] = names
    if not found or len(found) > MAX_BESIDE:
        raise BadRun("name the teams: --tree 'name=AGENT+AGENT; other=AGENT'")
    return found


def hierarchy(wish: Wish) -> list[Step]:
    """A tree as `lead(a(c, d), b)`."""
    steps: list[Step] = []
    levels = _levels(read_tree(wish.tree))
    for depth, level in enumerate(levels):
        for place, (name, tree, above) in enumerate(level):
            given = f"\n\n{_label(above[1])}, above you, said:\n\n{{{above[0]}-down}}" if above else ""
            below = ", ".join(_label(one.who) for one in tree.below)
            ask = f"\n\nSay what each of {below} shall do for it." if below else ""
            steps.append(_step(f"{name}-down", tree.who, f"{wish.task}{given}{ask}", beside=place > 0))
        if len(level) > MAX_BESIDE or depth >= MAX_DEPTH:
            raise BadRun(f"a tree has {MAX_DEPTH} levels and {MAX_BESIDE} agents beside each other at most")
    for level in reversed(levels):
        inner = [(name, tree) for name, tree, _ in level if tree.below]
        for place, (name, tree) in enumerate(inner):
            ends = [f"{name}.{at + 1}-{'up' if one.below else 'down'}" for at, one in enumerate(tree.below)]
            results = "\n\n".join(f"{{{end}}}" for end in ends)
            prompt = f"{wish.task}\n\nMake one answer of what those below you made:\n\n{results}"
            steps.append(_step(f"{name}-up", tree.who, prompt, beside=place > 0))
    return steps


_Place = tuple[str, Tree, "tuple[str, str] | None"]


def _levels(tree: Tree) -> list[list[_Place]]:
    """Who stands at each depth: a name for the place, who it is, and the place and agent above."""
    levels: list[list[_Place]] = [[("1", tree, None)]]
    while below := [
        (f"{name}.{at + 1}", one, (name, parent.who))
        for name, parent, _ in levels[-1]
        for at, one in enumerate(parent.below)
    ]:
        levels.append(list(below))
    return levels


def read_tree(text: str) -> Tree:
    """`lead(a(c, d), b)`. Raises: BadRun."""
    tokens = re.findall(r"[(),]|[^\s(),]+", text)
    trees, rest = _trees(tokens, 0)
    if len(trees) != 1 or rest:
        raise BadRun("write the tree as LEAD(A(C, D), B): --tree")
    return trees[0]


def _trees(tokens: Sequence[str], depth: int) -> tuple[tuple[Tree, ...], Sequence[str]]:
    found: list[Tree] = []
    if depth > MAX_DEPTH:
        raise BadRun(f"a tree has {MAX_DEPTH} levels at most")
    while tokens and _WORD.fullmatch(tokens[0]):
        who, tokens = tokens[0], tokens[1:]
        below: tuple[Tree, ...] = ()
        if tokens and tokens[0] == "(":
            below, tokens = _trees(tokens[1:], depth + 1)
            if not below or not tokens or tokens[0] != ")":
                raise BadRun("write the tree as LEAD(A(C, D), B): --tree")
            tokens = tokens[1:]
        found.append(Tree(who, below))
        if tokens and tokens[0] == ",":
            tokens = tokens[1:]
    return tuple(found), tokens


TOPOLOGIES: Final[Mapping[str, Callable[[Wish], list[Step]]]] = {
    "sequential": pipeline,
    "pipeline": pipeline,
    "broadcast": broadcast,
    "request": request,
    "feedback": feedback,
    "mapreduce": mapreduce,
    "hierarchy": hierarchy,
    "mesh": mesh,
    "teams": teams,
}


def toml_of(plan: Plan) -> str:
    """The plan as a file that `covey run start` takes."""
    value = value_of(plan)
    steps = value.pop("steps")
    lines = [f"{key} = {_toml(item)}" for key, item in value.items()]
    for step in steps:
        lines += ["", "[[steps]]", *(f"{key} = {_toml(item)}" for key, item in step.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict():
            return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return repr(value)
