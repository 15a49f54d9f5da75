"""Whatever an agent's work ends in fails its step, and nothing else.

What an agent reaches (libraries of models, tools and servers, and what others wrote into a plan) can end in any error:
one that came out of here would be judged as the whole service's, and take every workspace of the node with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from agents.errors import AgentError
from agents.workspace.runs.effects import EffectFailed
from protocols.errors import ProtocolError
from storage.errors import Corrupt, CorruptBlock, NotFound, StoreLocked, UnknownVersion

MAX_WHY_CHARS: Final = 300

log = structlog.get_logger(__name__)


@contextmanager
def contained(agent: str) -> Iterator[None]:
    """Turn what nobody foresaw into a failure of the agent's. What the node must not survive passes.

    Raises: EffectFailed, and what its callers know.
    """
    try:
        yield
    except (AgentError, ProtocolError, OSError, NotFound, trio.TooSlowError, MemoryError, StoreLocked, UnknownVersion):
        raise
    except Exception as error:
        if isinstance(error, Corrupt) and not isinstance(error, CorruptBlock):
            raise
        log.error("agent_failed", agent=agent, error=_told(error), exc_info=error)
        raise EffectFailed(f"{agent} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    inner: BaseException = error
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return " ".join(str(inner).split())[:MAX_WHY_CHARS] or type(inner).__name__
