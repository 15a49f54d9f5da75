"""Options of a plan that do not compose, each with the reason, and what of a round nobody can decide.

`fl plan` refuses a plan that has problems; `verify` repeats what is not decidable instead of passing it as proved.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from agents.aggregation.registry import before_of, lora_of, rule_of, server_of
from agents.aggregation.rules.fedavg import FedAvg
from agents.aggregation.rules.fedbuff import FedBuff
from agents.aggregation.updates import CannotAggregate
from agents.federation.options import BadOption, Options, options_of
from agents.federation.privacy.lattice import Lattice
from agents.federation.secure.terms import check_threshold, default_threshold
from protocols.rounds import Plan

LINEAR_LORA: Final = frozenset({"fedit", "ffa", "rolora"})  # they average halves; the others look at each adapter


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


def _is_of_single_adapters(asked: _Asked) -> bool:
    way = _lora(asked.plan)
    return way is not None and str(way.get("lora")) not in LINEAR_LORA


def _lora(plan: Plan) -> dict[str, object] | None:
    way = plan.task.get("lora")
    return way if isinstance(way, dict) else {"lora": way} if isinstance(way, str) else None


OPTIONS: Final[dict[str, Asks]] = {
    "secure aggregation": lambda asked: asked.options.secure is not None,
    "no secure aggregation": lambda asked: asked.options.secure is None,
    "a rule or step that looks at single updates": _is_per_update,
    "fedbuff": lambda asked: isinstance(rule_of(asked.plan.rule), FedBuff),
    "weights by samples": _is_weighted,
    "a LoRA way that looks at single adapters": _is_of_single_adapters,
    "central noise": lambda asked: asked.noise() == "central",
    "distributed noise": lambda asked: asked.noise() == "distributed",
    "privacy of clients": lambda asked: asked.noise() in ("central", "distributed"),
    "compression": lambda asked: asked.options.compression is not None,
    "gossip": lambda asked: asked.options.gossip is not None,
    "a server step": lambda asked: asked.plan.server is not None,
    "no norm bound": lambda asked: asked.plan.max_norm == 0.0,
    "accounting by pld": lambda asked: (
        asked.options.privacy is not None and asked.options.privacy.budget.accountant == "pld"
    ),
    "evaluation": lambda asked: asked.plan.is_evaluated,
    "a selection": lambda asked: asked.plan.n_selected > 0,
}

# What does not compose, and why.
TABLE: Final = (
    (
        "secure aggregation",
        "a rule or step that looks at single updates",
        "under masks nobody sees single updates, so a robust rule has nothing to choose from: take fedavg, or aggregate"
        " cohorts securely and put the robust rule over their sums",
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
        "values are put on a grid that ends somewhere: set max_norm, to which each client clips its own update",
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
    ("privacy of clients", "gossip", "neighbours see each other's models before any noise of the others is in them"),
    ("gossip", "secure aggregation", "there is no sum over a closed set, only means of neighbours"),
    (
        "gossip",
        "a rule or step that looks at single updates",
        "each member averages with its own neighbours: there is no closed set for a rule to choose from",
    ),
    ("gossip", "fedbuff", "there is no buffer that somebody closes"),
    ("gossip", "a selection", "there is nobody who selects: all whom the start names are in every round"),
    (
        "gossip",
        "a LoRA way that looks at single adapters",
        "members average adapters' halves with neighbours, and no one has all adapters: take ffa, rolora or fedit",
    ),
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
)

# What composes, and promises less than it may seem to.
LIMITS: Final = (
    ("fedbuff", "a buffer below half of the members leaves to who coordinates whose updates come first"),
    ("gossip", "all members count alike in a mean: numbers of samples do not weigh"),
    ("central noise", "members see each other's updates, and the noise: it protects from who sees results alone"),
    ("a selection", "it is made from a public seed, so it adds nothing to privacy: each round counts in full"),
)


def problems(plan: Plan) -> list[str]:
    """Why this plan cannot be carried out, each in a sentence; nothing when it can."""
    try:
        asked = _Asked(plan, options_of(plan))
        for step in plan.before:
            before_of(step)
        rule_of(plan.rule)
        if plan.server is not None:
            server_of(plan.server)
        if (way := _lora(plan)) is not None:
            lora_of(way)
    except (BadOption, CannotAggregate) as error:
        return [str(error)]
    found = [f"{one} and {other}: {why}" for one, other, why in TABLE if OPTIONS[one](asked) and OPTIONS[other](asked)]
    return found + _numbers(asked)


def undecidable(plan: Plan) -> list[str]:
    """What nobody can prove or refute of a round of this plan. Raises: BadOption, CannotAggregate."""
    asked = _Asked(plan, options_of(plan))
    return [why for option, why in UNDECIDABLE if OPTIONS[option](asked)]


def limits(plan: Plan) -> list[str]:
    """What is less than one may think. Raises: BadOption, CannotAggregate."""
    asked = _Asked(plan, options_of(plan))
    is_private = asked.options.privacy is not None
    return [why for option, why in LIMITS if OPTIONS[option](asked) and (is_private or option != "a selection")]


def _numbers(asked: _Asked) -> list[str]:
    """Numbers that contradict each other."""
    plan, (secure, privacy) = asked.plan, (asked.options.secure, asked.options.privacy)
    found = []
    rule = rule_of(plan.rule)
    if isinstance(rule, FedBuff) and rule.n_buffer and not plan.min_participants <= rule.n_buffer <= len(plan.members):
        found.append(f"fedbuff: a buffer of {rule.n_buffer} is less than min_participants, or more than the members")
    n_most = plan.n_selected or len(plan.members)
    if secure is not None:
        threshold = secure.threshold or default_threshold(n_most)
        if why := check_threshold(n_most, threshold, secure.n_colluders):
            found.append(f"secure aggregation: {why}")
        elif plan.min_participants < threshold:
            found.append(f"secure aggregation: min_participants is below the threshold of {threshold}: raise it")
    if privacy is not None and privacy.noise != "examples":
        n_colluders = secure.n_colluders if secure is not None else 0
        n_noisy = plan.min_participants - n_colluders if privacy.noise == "distributed" else 1
        why = "no client's noise would count beside those that may collude"
        if n_noisy >= 1:
            why = Lattice(privacy.bound, privacy.multiplier, n_noisy).problem(n_most)
        if why:
            found.append(f"privacy: {why}")
    return found
