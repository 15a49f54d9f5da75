"""The OpenAI-compatible face: where it is, and the token that opens it."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from daemon.api.operation import Nothing, Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node


class WhichToken(Params, frozen=True):
    """The token in force, or a new one."""

    is_new: Annotated[bool, Meta(description="Make a new one; the old one is worth nothing from then on.")] = False


class OpenAiToken(Result, frozen=True):
    """Who has it may use the models: send it as `Authorization: Bearer TOKEN`, or as `api_key` of a client library."""

    token: str
    url: str | None


class OpenAiStatus(Result, frozen=True):
    """The face as it is now. `models` are the names that a request can use; `n_answers` are under way or waiting."""

    is_enabled: bool
    url: str | None
    models: list[str]
    n_answers: int
    n_requests: int
    n_tokens: int
    hint: str


async def token(node: "Node", params: WhichToken) -> OpenAiToken:
    """Read or renew the token. Raises: BadHome."""
    import trio

    held = node.openai.token
    made = await trio.to_thread.run_sync(held.renew if params.is_new else held.value)
    return OpenAiToken(token=made, url=node.openai.url)


async def status(node: "Node", _params: Nothing) -> OpenAiStatus:
    """What the face is doing."""
    import trio

    from agents.encoders import encoder_of
    from daemon.api.openai.names import listed

    engine, face = node.config.engine, node.openai
    entries = await trio.to_thread.run_sync(listed, node.catalog, engine.model, encoder_of(engine.encoder))
    if face.url is None:
        hint = "it is off: covey config set openai.is_enabled true, then start the daemon again"
    else:
        hint = f"in Python: OpenAI(base_url={face.url!r}, api_key=TOKEN); the token: covey openai token"
    return OpenAiStatus(
        is_enabled=node.config.openai.is_enabled,
        url=face.url,
        models=[entry["id"] for entry in entries],
        n_answers=face.n_answers,
        n_requests=face.n_requests,
        n_tokens=face.n_tokens,
        hint=hint,
    )


OPERATIONS = (
    Operation(
        noun="openai",
        verb="token",
        summary="Print the token that opens the OpenAI-compatible API.",
        params=WhichToken,
        result=OpenAiToken,
        handler=token,
    ),
    Operation(
        noun="openai",
        verb="status",
        summary="Show where the OpenAI-compatible API is, and its models.",
        params=Nothing,
        result=OpenAiStatus,
        handler=status,
    ),
)
