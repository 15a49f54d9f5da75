"""What the work of a node can fail with; each docstring says what to do next."""

from typing import ClassVar


class AgentError(Exception):
    """Something a node was asked to do failed."""

    code: ClassVar[str] = "failed"


class EngineDied(AgentError):
    """The engine process ended in mid-request (often: out of memory). The request failed; the next one starts a
    new engine. If it comes again, try a smaller model or a shorter context.
    """

    code = "engine_died"


class EngineMissing(AgentError):
    """The engine's packages are not installed. Run: pip install 'covey[engine]' torch==2.13.0."""

    code = "engine_missing"


class EngineFailed(AgentError):
    """The engine refused or failed a request."""

    code = "engine_failed"


class BadRequest(EngineFailed):
    """The model cannot be asked for that. Change the request."""

    code = "invalid_request"


class BadModel(EngineFailed):
    """The model is not usable as it is."""

    code = "bad_model"


class InUse(AgentError):
    """Something still works with it. End that first, then try again."""

    code = "in_use"


class NoRoom(AgentError):
    """The disk has no room for it. Free some space, or remove a model: covey model rm."""

    code = "no_room"


class EngineBusy(AgentError):
    """The engine has too much to do for one request more. Try again soon."""

    code = "engine_busy"


class TooLong(AgentError):
    """The message does not fit the model's context. Shorten it, or lower --max-tokens."""

    code = "too_long"


class BadAdapter(AgentError):
    """The adapter is not usable as it is."""

    code = "bad_adapter"


class BadArtifact(AgentError):
    """The artifact is not usable as it is."""

    code = "bad_artifact"


class WrongBase(AgentError):
    """The adapter was made for another base model."""

    code = "wrong_base"


class Untrusted(AgentError):
    """The publisher is not trusted for this kind. To trust it: covey peer trust PEER --kinds adapters."""

    code = "untrusted"


class BadData(AgentError):
    """The training data is not usable as it is."""

    code = "bad_data"


class UnknownName(AgentError):
    """There is nothing by that name. `covey adapter ls` and `covey model ls` show what there is."""

    code = "unknown_name"


class BackendUnreachable(AgentError):
    """The server that answers for this node does not answer. Check that it runs, and the setting backend.url."""

    code = "backend_unreachable"


class BackendRefused(AgentError):
    """The server that answers for this node refused the request."""

    code = "backend_refused"


class BackendFailed(AgentError):
    """The server that answers for this node failed, or does not speak OpenAI's API. Its own log says more."""

    code = "backend_failed"


class BackendBusy(AgentError):
    """The server that answers for this node has too much to do. Try again soon."""

    code = "backend_busy"


class NoAdapters(AgentError):
    """The server that answers for this node takes no adapters while it runs."""

    code = "no_adapters"


class UnlikeRun(AgentError):
    """An unfinished training of that name is another one. Go on with it, or begin anew: covey train DATA --fresh."""

    code = "unlike_run"


class CannotResume(AgentError):
    """The training cannot be gone on with exactly as it was begun. --force goes on all the same."""

    code = "cannot_resume"


def unwrapped(error: BaseException) -> BaseException:
    """The error itself, without the groups that each nursery on its way put it in, as long as it is alone in them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
