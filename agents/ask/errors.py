"""Why a peer gave no answer, for people. Each docstring says what to do next."""

from typing import Final

from agents.errors import AgentError, BadAdapter, BadRequest, TooLong, UnknownName, WrongBase


class PeerRefuses(AgentError):
    """The peer does not answer this node. Ask its owner to allow it."""

    code = "untrusted"


class QuotaSpent(AgentError):
    """The peer has answered as much as it lets this node ask for. Try again when it says so."""

    code = "quota_spent"


class TooManyQuestions(AgentError):
    """The peer takes no more questions of this node at the moment. Try again when it says so."""

    code = "too_many_questions"


class PeerBusy(AgentError):
    """The peer answers others, and its line is full. Try again in a while."""

    code = "peer_busy"


class PeerFailed(AgentError):
    """The peer could not answer. Try again, or ask another one."""

    code = "peer_failed"


class BadOption(AgentError):
    """A sampling option is outside of what the model or the peer allows."""

    code = "invalid_option"


class BrokeOff(AgentError):
    """The peer went away, or fell silent, in the middle of its answer. Ask again."""

    code = "stream_broken"


class AnsweredWrongly(AgentError):
    """The peer's answer does not follow the protocol. Ask another one; to ban it: covey peer rm PEER."""

    code = "malformed"


class NoRecord(AgentError):
    """The peer's signed record does not fit the answer that it gave, or there is none. Do not rely on this answer."""

    code = "forged"


# What a peer may say -> what its user reads. What is not listed here is PeerFailed.
BY_CODE: Final[dict[str, type[AgentError]]] = {
    "untrusted": PeerRefuses,
    "quota_spent": QuotaSpent,
    "too_many_questions": TooManyQuestions,
    "busy": PeerBusy,
    "invalid_option": BadOption,
    "invalid_request": BadRequest,
    "bad_adapter": BadAdapter,
    "wrong_base": WrongBase,
    "unknown_name": UnknownName,
    "too_long": TooLong,
}
