"""Between what the engine is asked and what travels: the same options under the same names."""

from typing import Any

import msgspec

from agents.engine.messages import Generate
from agents.engine.messages import Turn as EngineTurn
from protocols.ask.wire import MAX_TOKENS, Options, Turn

_OPTIONS = Options.__struct_fields__


def options_of(request: Generate) -> Options:
    """The options of a request to the engine."""
    fields: dict[str, Any] = {name: getattr(request, name) for name in _OPTIONS}
    return Options(**fields | {"max_tokens": min(request.max_tokens, MAX_TOKENS)})


def turns_of(request: Generate) -> tuple[Turn, ...]:
    """Its chat."""
    return tuple(Turn(role=turn.role, content=turn.content) for turn in request.turns)


def request_of(turns: tuple[Turn, ...], options: Options, adapter: str | None) -> Generate:
    """The request to the engine that asks this. `adapter` is a folder."""
    fields: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS}
    said = tuple(EngineTurn(turn.role, turn.content) for turn in turns)
    return msgspec.structs.replace(Generate(turns=said, adapter=adapter), **fields)
