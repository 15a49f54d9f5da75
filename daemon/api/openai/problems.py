"""What goes wrong, in the shape in which OpenAI's API says it: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Final

import msgspec

from daemon.api.faults import Fault, fault_of

INVALID: Final = "invalid_request_error"
RETRY_AFTER_S: Final = 2

_TOO_LONG: Final = frozenset({"too_long", "context_length_exceeded"})
_BUSY: Final = frozenset({"engine_busy", "backend_busy"})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told. `param` is the part of the request that it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refusal(Exception):
    """The request is answered with a problem."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message)
        self.status = status
        self.problem = problem

    @property
    def body(self) -> bytes:
        """The problem as JSON."""
        return msgspec.json.encode({"error": self.problem})


def invalid(message: str, param: str | None = None, *, code: str | None = None, status: int = 400) -> Refusal:
    """The request is wrong, in the part `param` of it."""
    return Refusal(status, Problem(message=message, type=INVALID, param=param, code=code))


def no_model(name: str) -> Refusal:
    """A name that is neither a model's nor an adapter's: never answered by another one."""
    text = f"The model {name[:256]!r} does not exist here: no base model, adapter or encoder has this name"
    return Refusal(404, Problem(message=text, type=INVALID, param="model", code="model_not_found"))


def bad_key(is_missing: bool) -> Refusal:
    """No token, or another one."""
    text = (
        "You didn't provide an API key: send the header Authorization: Bearer TOKEN. "
        if is_missing
        else "Incorrect API key provided. "
    )
    text += "The node's owner reads it with: covey openai token"
    return Refusal(401, Problem(message=text, type=INVALID, code=None if is_missing else "invalid_api_key"))


def busy(n: int) -> Refusal:
    """The queue is full."""
    text = f"{n} answers are under way or waiting, which is this node's limit: try again soon"
    return Refusal(429, Problem(message=text, type="requests", code="rate_limit_exceeded"))


def problem_of(error: BaseException) -> Refusal:
    """What a client is told of any error; one that is a bug keeps its text to the log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BaseExceptionGroup):
        return max((problem_of(inner) for inner in error.exceptions), key=lambda refusal: refusal.status)
    return _of_fault(fault_of(error))


def _of_fault(fault: Fault) -> Refusal:
    if fault.code in _TOO_LONG:
        return invalid(fault.text, "messages", code="context_length_exceeded")
    text = f"{fault.text.removesuffix('.')}. {fault.hint}" if fault.hint else fault.text
    if fault.code in _BUSY:
        return Refusal(429, Problem(message=text, type="requests", code="rate_limit_exceeded"))
    if fault.code in ("bad_adapter", "wrong_base"):
        return invalid(text, "model", code=fault.code)
    if 400 <= fault.status < 500:
        return invalid(text, code=fault.code, status=fault.status)
    return Refusal(fault.status, Problem(message=text, type="server_error", code=fault.code))
