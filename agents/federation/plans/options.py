"""What a plan may ask for beside its recipe: secure aggregation, privacy, compression, gossip."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from agents.errors import AgentError
from agents.federation.privacy.ledger import Budget
from agents.federation.secure.terms import Secure, secure_of
from agents.federation.updates.compression.codec import Codec
from agents.federation.updates.compression.registry import codec_of
from protocols.rounds import Plan

S = TypeVar("S")


class BadOption(AgentError):
    """An option of the plan is not valid. The message says which."""

    code = "bad_option"


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Differential privacy.

    noise: "central", by the coordinator over clipped updates; "distributed", by each under masks; "examples", by each
    task on its own gradients. multiplier: the noise's deviation in clip bounds. quantile: of the norms, which the bound
    follows from round to round, by `rate`; 0 for a fixed one. count_noise: the deviation of the noisy number of clients
    within the bound, in clients; 0 for a twentieth of the fewest that take part, and no less than twice `multiplier`.
    """

    noise: Literal["central", "distributed", "examples"]
    bound: Annotated[float, Meta(ge=2.0**-40, le=1e9)]
    multiplier: Annotated[float, Meta(ge=2.0**-100, le=1e4)]
    budget: Budget
    quantile: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    rate: Annotated[float, Meta(gt=0.0, le=2.0)] = 0.2
    count_noise: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0


class Gossip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """No coordinator: averages with neighbours ("d_psgd", "push_sum"), or in groups of a grid ("moshpit").

    topology: who is whose neighbour; "flock" for up to `n_neighbours` of those that can be reached. The grid of groups
    is one of `n_dimensions`, and needs no topology.
    """

    mixing: Literal["d_psgd", "push_sum", "moshpit"] = "push_sum"
    topology: Literal["ring", "exponential", "full", "flock"] = "flock"
    n_neighbours: Annotated[int, Meta(ge=1, le=64)] = 4
    n_dimensions: Annotated[int, Meta(ge=1, le=8)] = 2


class Options(msgspec.Struct, frozen=True):
    """All of them, read."""

    secure: Secure | None
    privacy: Privacy | None
    compression: Codec | None
    gossip: Gossip | None


def options_of(plan: Plan) -> Options:
    """The options of a plan. Raises: BadOption."""
    return Options(
        _read("secure", plan.secure, secure_of),
        _read("privacy", plan.privacy, lambda settings: msgspec.convert(settings, Privacy)),
        _read("compression", plan.compression, codec_of),
        _read("gossip", plan.gossip, gossip_of),
    )


def gossip_of(settings: object) -> Gossip:
    """Raises: msgspec.ValidationError."""
    return msgspec.convert(settings, Gossip)


def _read(name: str, settings: object, read: Callable[[object], S]) -> S | None:
    try:
        return read(settings) if settings is not None else None
    except ValueError as error:  # msgspec's own is one
        raise BadOption(f"the settings of {name} are not valid: {error}") from None
