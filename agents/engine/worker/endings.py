"""The final replies of requests that come to nothing."""

from typing import Final

from agents.engine.messages import Failed, Finished, Generate, Reply, Request
from agents.errors import AgentError, EngineFailed

MAX_TEXT_CHARS: Final = 2000


def failed(request_id: int, error: AgentError) -> Failed:
    """It went wrong."""
    return Failed(id=request_id, code=error.code, text=str(error)[:MAX_TEXT_CHARS])


def unforeseen(error: Exception) -> EngineFailed:
    """What nobody thought of: for the user a line, for the log the rest."""
    return EngineFailed(f"{type(error).__name__}: {error}")


def cancelled(request: Request) -> Reply:
    """Nobody wanted it any more before it began."""
    if isinstance(request, Generate):
        return Finished(
            id=request.id, reason="cancelled", n_prompt_tokens=0, n_tokens=0, first_token_s=0.0, total_s=0.0
        )
    return failed(request.id, EngineFailed("cancelled before it began"))
