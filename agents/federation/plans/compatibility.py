"""Options of a plan that do not compose, each with the reason, and what of a round nobody can decide.

`fl plan` refuses a plan that has problems; `verify` repeats what is not decidable instead of passing it as proved.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from agents.aggregation.lora.adapters import LoraWay
from agents.aggregation.registry import before_of, rule_of, server_of
from agents.aggregation.rules.fedavg import FedAvg
from agents.aggregation.rules.fedbuff import FedBuff
from agents.aggregation.rules.fednova import FedNova
from agents.aggregation.rules.fltrust import FLTrust
from agents.aggregation.server.scaffold import Scaffold
from agents.aggregation.updates import CannotAggregate
from agents.federation.events import claims
from agents.federation.events.grants import capacity
from agents.federation.plans.options import BadOption, Options, options_of
from agents.federation.plans.privacy_accounts import lattice_of, noise_of
from agents.federation.privacy import examples
from agents.federation.secure.terms import check_threshold, default_threshold
from agents.federation.tasks import BadTask, Task, task_of
from agents.federation.updates.lora import terms_of, way_of
from agents.federation.updates.variates import has_variates, steps_of
from protocols.rounds import MAX_MEMBERS, Plan

MIN_GRID: Final = 2.0**-100  # of a grid whose levels are numbers, and none too large for float32
MAX_GRID: Final = 2.0**100


class Unreckonable(BadOption):
    """Numbers of a plan contradict each other, for whoever reads it. The message says which."""


class _Asked(NamedTuple):
    """A plan and its options, read."""

    plan: Plan
    options: Options

    def noise(self) -> str:
        """The kind of noise, or nothing."""
        return self.options.privacy.noise if self.options.privacy is not None else ""


Asks = Callable[[_Asked], bool]


def _is_per_update(asked: _Asked) -> bool:
    return bool(asked.plan.before) or not isinstance(rule_of(asked.plan.rule), FedAvg | FedBuff)


def _is_weighted(asked: _Asked) -> bool:
    rule = rule_of(asked.plan.rule)
    return isinstance(rule, FedAvg) and rule.weights == "samples"


def _is_drawn_by_samples(asked: _Asked) -> bool:
    return asked.plan.chances is not None and asked.plan.chances.by == "n_samples"


def _lets_in(asked: _Asked) -> bool:
    plan = asked.plan
    return plan.let_in is not None and plan.let_in.most(len(plan.members)) > 0


def _lora(is_so: Callable[[LoraWay], bool]) -> Asks:
    def asks(asked: _Asked) -> bool:
        way = way_of(asked.plan)
        return way is not None and is_so(way)

    return asks


def _task(is_so: Callable[[Task], bool]) -> Asks:
    def asks(asked: _Asked) -> bool:
        try:
            return is_so(task_of(asked.plan.task))
        except BadTask:  # it is refused for itself
            return False

    return asks


OPTIONS: Final[dict[str, Asks]] = {
    "secure aggregation": lambda asked: asked.options.secure is not None,
    "no secure aggregation": lambda asked: asked.options.secure is None,
    "a rule or step that looks at single updates": _is_per_update,
    "fedbuff": lambda asked: isinstance(rule_of(asked.plan.rule), FedBuff),
    "weights by samples": _is_weighted,
    "fednova": lambda asked: isinstance(rule_of(asked.plan.rule), FedNova),
    "fltrust": lambda asked: isinstance(rule_of(asked.plan.rule), FLTrust),
    "a step before the rule": lambda asked: bool(asked.plan.before),
    "scaffold": lambda asked: has_variates(asked.plan),
    "a task that corrects no gradients": _task(lambda task: not task.corrects_drift),
    "steps other than plain SGD's": _task(lambda task: not task.is_plain_sgd),
    "a LoRA way that looks at single adapters": _lora(lambda way: not way.is_of_halves),
    "a LoRA way that averages another half each round": _lora(lambda way: way.is_of_halves and way.moves),
    "a LoRA way that turns, cuts or begins anew": _lora(lambda way: way.moves),
    "a LoRA way that adds to the base": _lora(lambda way: way.goes_into_base),
    "hetlora": _lora(lambda way: way.__struct_config__.tag == "hetlora"),
    "central noise": lambda asked: asked.noise() == "central",
    "distributed noise": lambda asked: asked.noise() == "distributed",
    "privacy of clients": lambda asked: asked.noise() in ("central", "distributed"),
    "noise in examples' gradients": lambda asked: asked.noise() == "examples",
    "a bound that follows norms": lambda asked: (
        asked.options.privacy is not None and asked.options.privacy.quantile > 0
    ),
    "compression": lambda asked: asked.options.compression is not None,
    "gossip": lambda asked: asked.options.gossip is not None,
    "a server step": lambda asked: asked.plan.server is not None,
    "no norm bound": lambda asked: asked.plan.max_norm == 0.0,
    "accounting by pld": lambda asked: (
        asked.options.privacy is not None and asked.options.privacy.budget.accountant == "pld"
    ),
    "evaluation": lambda asked: asked.plan.is_evaluated,
    "members whom grants let in": lambda asked: _lets_in(asked),
    "a selection": lambda asked: asked.plan.n_selected > 0,
    "no selection": lambda asked: asked.plan.n_selected == 0,
    "chances by what members say that they have": lambda asked: asked.plan.chances is not None,
    "claims": lambda asked: claims.asks(asked.plan),
    "chances by samples": _is_drawn_by_samples,
    "samples that count twice": lambda asked: _is_drawn_by_samples(asked) and _is_weighted(asked),
}

# What does not compose, and why.
TABLE: Final = (
    (
        "secure aggregation",
        "a rule or step that looks at single updates",
        "under masks nobody sees single updates, so a robust rule has nothing to choose from: take fedavg, or aggregate"
        " cohorts securely and put the robust rule over their results, by task given in a plan above",
    ),
    (
        "secure aggregation",
        "fedbuff",
        "masks cancel within the one set of clients that agreed on them; updates of several rounds share none",
    ),
    (
        "secure aggregation",
        "a LoRA way that looks at single adapters",
        "it multiplies, stacks or weighs each client's adapter by itself, and under masks there is only their sum: take"
        " ffa, rolora or fedit",
    ),
    (
        "a LoRA way that looks at single adapters",
        "a rule or step that looks at single updates",
        "the way itself says how adapters become one, of whole products; a robust rule would choose among halves, which"
        " mean nothing by themselves: take fedit, ffa or rolora with it",
    ),
    (
        "a LoRA way that looks at single adapters",
        "fedbuff",
        "an adapter is what its round began with and the update, and those of other rounds began with something else",
    ),
    (
        "a LoRA way that looks at single adapters",
        "a server step",
        "its step is for the mean of updates, and this way makes the next adapter in another manner",
    ),
    (
        "a LoRA way that looks at single adapters",
        "privacy of clients",
        "the noise is made for a mean of clipped updates; how far one client moves a product, a stack or a cut is not"
        " bounded by its clip: take ffa",
    ),
    (
        "a LoRA way that looks at single adapters",
        "gossip",
        "neighbours average their tensors, and nobody looks at each one's adapter by itself: take ffa",
    ),
    (
        "a LoRA way that averages another half each round",
        "fedbuff",
        "updates of another round may be of the other half",
    ),
    (
        "a LoRA way that averages another half each round",
        "a server step",
        "its memory of the half whose turn it is not would move that one too",
    ),
    (
        "a LoRA way that averages another half each round",
        "gossip",
        "the other half is the same for all only where all have one result",
    ),
    (
        "a LoRA way that turns, cuts or begins anew",
        "compression",
        "what a codec leaves out is added to the next update, whose numbers stand for something else: take fedit, ffa,"
        " fedex or hetlora",
    ),
    (
        "fednova",
        "steps other than plain SGD's",
        "it divides an update by its number of steps, and how far n steps go is n times as far as one with plain SGD"
        " alone: set optimizer = 'sgd', without momentum or proximal_mu, or take fedavg",
    ),
    (
        "fltrust",
        "a step before the rule",
        "it mixes the trusted peer's update with others', and none is left to measure by",
    ),
    (
        "scaffold",
        "steps other than plain SGD's",
        "a variate is an update over its steps and their rate, and that is a mean of gradients with plain SGD alone:"
        " set optimizer = 'sgd', without momentum or proximal_mu",
    ),
    (
        "scaffold",
        "a task that corrects no gradients",
        "this task has no steps to be corrected: take softmax, lora or torch",
    ),
    (
        "scaffold",
        "a rule or step that looks at single updates",
        "corrections cancel in a plain mean of all: where a rule leaves updates out, or moves them, their authors' own"
        " variates and the common one fall apart, and every later step is off by as much: take fedavg",
    ),
    (
        "scaffold",
        "weights by samples",
        "the common variate is the plain mean of the participants' own: take uniform weights",
    ),
    ("scaffold", "fedbuff", "an update of an earlier base was corrected by the common variate of then"),
    (
        "scaffold",
        "secure aggregation",
        "a participant makes its own variate again from its updates that counted, and of a masked one nothing is left",
    ),
    (
        "scaffold",
        "privacy of clients",
        "noise and clips go into the common variate and into nobody's own: they fall apart further with every round",
    ),
    (
        "scaffold",
        "compression",
        "a variate is made of an update, and of one that a codec cut it is no gradient: each step would follow the cut",
    ),
    ("hetlora", "weights by samples", "it weighs adapters by the norms of their products: take uniform weights"),
    (
        "secure aggregation",
        "compression",
        "masks cancel in sums over one grid that all share; coordinates, scales and factors of each client's own do not"
        " add up. Masked updates take 4 bytes a parameter: take fewer of them (ffa), or more local steps",
    ),
    (
        "secure aggregation",
        "central noise",
        "whoever adds the noise would see the exact sum first, and cannot check a single clip: take distributed noise",
    ),
    (
        "distributed noise",
        "no secure aggregation",
        "each update carries only its part of the noise, and without masks each is seen by itself",
    ),
    (
        "distributed noise",
        "accounting by pld",
        "a sum of discrete Gaussians over many values has no single distribution of losses: take rdp",
    ),
    (
        "secure aggregation",
        "no norm bound",
        "values are put on a grid that ends somewhere: set max_norm, above the tables, to which each clips its own",
    ),
    (
        "privacy of clients",
        "weights by samples",
        "the noise is made for what one client can change, and a claimed weight would change that: take uniform ones",
    ),
    (
        "privacy of clients",
        "a rule or step that looks at single updates",
        "what one client can change in it is not its clip bound over their number, so the noise would promise too much",
    ),
    (
        "privacy of clients",
        "fedbuff",
        "a client may be in several buffers of one round's time, and the accounts count it once",
    ),
    ("fedbuff", "a selection", "a buffer is of whoever is ready first, in whichever round: leave out selected"),
    (
        "privacy of clients",
        "evaluation",
        "how results do on participants' own data, and how many those are, is told without noise: leave out evaluated",
    ),
    (
        "noise in examples' gradients",
        "evaluation",
        "how results do on what participants hold out is told without noise, and that is examples too: leave out"
        " evaluated",
    ),
    (
        "noise in examples' gradients",
        "a bound that follows norms",
        "the bound follows the norms of clients' updates, and nobody else sees those of examples: leave out quantile",
    ),
    ("privacy of clients", "gossip", "neighbours see each other's models before any noise of the others is in them"),
    ("gossip", "secure aggregation", "there is no sum over a closed set, only means of neighbours"),
    (
        "gossip",
        "a rule or step that looks at single updates",
        "each member averages with its own neighbours: there is no closed set for a rule to choose from",
    ),
    ("gossip", "fedbuff", "there is no buffer that somebody closes"),
    (
        "fedbuff",
        "members whom grants let in",
        "an update that waits for a later round is given to who was in its own, and grants let in others meanwhile:"
        " name all members in the plan, or let in nobody (let_in = { direct = 0 })",
    ),
    (
        "gossip",
        "members whom grants let in",
        "nobody closes a list that one could be left out of again: name all members in the plan, or let in nobody"
        " (let_in = { direct = 0 })",
    ),
    (
        "chances by what members say that they have",
        "no selection",
        "all who joined take part in every round, so nobody is drawn: say how many with selected",
    ),
    ("gossip", "a selection", "there is nobody who selects: all whom the start names are in every round"),
    ("gossip", "a server step", "there is no server's change of the model: each member has a model of its own"),
    (
        "gossip",
        "compression",
        "what a codec leaves out would have to be remembered for each neighbour, and no codec here does that",
    ),
)

# What cannot be recomputed by other members, and so is never proved.
UNDECIDABLE: Final = (
    ("central noise", "whether its coordinator drew the noise by chance, and not as it liked"),
    ("secure aggregation", "norms and values under masks are checked by each client alone"),
    (
        "gossip",
        "each member has a result of its own, proved from the states that it names: whether it was given more, and"
        " could have taken it, is not",
    ),
    (
        "distributed noise",
        "whether each client added its part of the noise: accounts leave out as many as may collude",
    ),
    ("claims", "what members say that they have: it is their word, and counts as far as the plan lets it"),
    (
        "noise in examples' gradients",
        "whether each participant bounded its examples' gradients, drew noise, and has as many examples as it says: its"
        " noise is its own secret",
    ),
)

# What composes, and promises less than it may seem to.
LIMITS: Final = (
    ("fedbuff", "a buffer below half of the members leaves to who coordinates whose updates come first"),
    (
        "scaffold",
        "a false update stays in the common variate, and moves each later round as far as it moved its own: set"
        " max_norm. Who leaves stays in it as it last was. Members that never train shorten everybody's way: set"
        " n_clients to how many do train",
    ),
    ("gossip", "all members count alike in a mean: numbers of samples do not weigh"),
    ("central noise", "members see each other's updates, and the noise: it protects from who sees results alone"),
    (
        "noise in examples' gradients",
        "it hides one example of a participant from everybody, not the participant: who stands behind many examples is"
        " hidden by none of it, and how many examples each has is told",
    ),
    (
        "a LoRA way that adds to the base",
        "each result holds a full matrix for each layer: updates stay small, results are as large as those weights;"
        " an adapter made of one has a rank of 512 at most, and says what it lacks",
    ),
    (
        "members whom grants let in",
        "who may let in as many as half of a round's members decides with them what is final: see let_in and"
        " max_participants",
    ),
    (
        "samples that count twice",
        "who has more samples is drawn more often, and counts for more once it is drawn: take uniform weights for a"
        " mean over all samples",
    ),
    ("chances by samples", "members tell how many samples they have when they join, also where masks or noise hide it"),
    ("a selection", "it is made from a public seed, so it adds nothing to privacy: each round counts in full"),
)


def problems(plan: Plan) -> list[str]:
    """Why this plan cannot be carried out, each in a sentence; nothing when it can."""
    try:
        asked = _read(plan)
    except (BadOption, CannotAggregate) as error:
        return [str(error)]
    found = [f"{one} and {other}: {why}" for one, other, why in TABLE if OPTIONS[one](asked) and OPTIONS[other](asked)]
    noise = noise_of(plan)
    why = examples.problem(noise) if noise is not None else ""
    return found + _numbers(asked) + ([f"privacy: {why}"] if why else [])


def check(plan: Plan) -> None:
    """May a node follow this plan, whoever signed it? There are numbers that nobody can reckon with.

    Those of examples' noise are each participant's own to reckon with.

    Raises: Unreckonable; BadOption, CannotAggregate for what is not known here.
    """
    if found := _numbers(_read(plan)):
        raise Unreckonable(f"nobody can carry out this plan: {'; '.join(found)}")


def _read(plan: Plan) -> _Asked:
    """All that is asked for in a plan, each of its settings valid. Raises: BadOption, CannotAggregate."""
    asked = _Asked(plan, options_of(plan))
    for step in plan.before:
        before_of(step)
    rule_of(plan.rule)
    if plan.server is not None:
        server_of(plan.server)
    if way_of(plan) is not None:
        terms_of(plan)
    return asked


def undecidable(plan: Plan) -> list[str]:
    """What nobody can prove or refute of a round of this plan. Raises: BadOption, CannotAggregate."""
    asked = _Asked(plan, options_of(plan))
    return [why for option, why in UNDECIDABLE if OPTIONS[option](asked)]


def limits(plan: Plan) -> list[str]:
    """What is less than one may think. Raises: BadOption, CannotAggregate."""
    asked = _Asked(plan, options_of(plan))
    is_private = asked.options.privacy is not None
    return [why for option, why in LIMITS if OPTIONS[option](asked) and (is_private or option != "a selection")]


def _places(plan: Plan) -> list[str]:
    """Whether as many as grants let in can take part."""
    found = []
    if plan.let_in is not None and plan.joining != "granted":
        found.append('let_in: grants let in, and this plan asks for none: set joining = "granted", or leave it out')
    if plan.let_in is not None and (n_all := len(plan.members) + plan.let_in.most(len(plan.members))) > MAX_MEMBERS:
        found.append(f"let_in: with these numbers there could be {n_all:,} members, and {MAX_MEMBERS:,} are the most")
    if 0 < plan.max_participants < max(plan.min_participants, plan.n_selected):
        found.append(f"max_participants: {plan.max_participants} is less than the fewest that a round takes")
    return found


def _numbers(asked: _Asked) -> list[str]:
    """Numbers that contradict each other."""
    plan, (secure, privacy) = asked.plan, (asked.options.secure, asked.options.privacy)
    found = []
    rule = rule_of(plan.rule)
    if isinstance(rule, FedBuff) and rule.n_buffer and not plan.min_participants <= rule.n_buffer <= capacity(plan):
        found.append(f"fedbuff: a buffer of {rule.n_buffer} is less than min_participants, or more than the members")
    n_most = plan.n_selected or capacity(plan)
    found += _places(plan) + _of_variates(plan)
    if secure is not None:
        threshold = secure.threshold or default_threshold(n_most)
        if why := check_threshold(n_most, threshold, secure.n_colluders):
            found.append(f"secure aggregation: {why}")
        elif plan.min_participants < threshold:
            found.append(f"secure aggregation: min_participants is below the threshold of {threshold}: raise it")
        is_on_lattice = privacy is not None and privacy.noise != "examples"
        if not is_on_lattice and not MIN_GRID <= plan.max_norm <= MAX_GRID:
            found.append(f"secure aggregation: a max_norm of {plan.max_norm:g} gives no grid to put values on")
    if privacy is not None and privacy.noise != "examples":
        n_colluders = secure.n_colluders if secure is not None else 0
        why = "no client's noise would count beside those that may collude"
        if privacy.noise == "central" or plan.min_participants > n_colluders:
            try:
                grid = lattice_of(plan)
                why = grid.problem(n_most) if grid is not None else ""
            except BadOption as error:
                why = str(error)
        if why:
            found.append(f"privacy: {why}")
    return found


def _of_variates(plan: Plan) -> list[str]:
    server = server_of(plan.server) if plan.server is not None else None
    if not isinstance(server, Scaffold):
        return []
    if server.n_clients and not plan.min_participants <= server.n_clients <= len(plan.members):
        return [f"scaffold: n_clients is {server.n_clients}, less than min_participants or more than the members"]
    try:
        steps_of(plan)
    except CannotAggregate as error:
        return [str(error)]
    return []
