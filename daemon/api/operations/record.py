"""Signed records of answers: what they say, whether they hold, and whether the same question gets the same answer."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from agents.ask.records import Kept
    from daemon.app import Node


class Of(Params, frozen=True):
    """A record."""

    cid: Annotated[str, Meta(max_length=128, description="The record's CID.")]
    is_again: Annotated[bool, Meta(description="Ask the same again here, and compare the answers.")] = False
    timeout_s: Annotated[float, Meta(gt=0, le=3600, description="The longest time for that.")] = 300.0


class RecordIs(Result, frozen=True):
    """A record whose signature holds.

    `again` tells of a second answer: `same`, `other` (with where they part, in characters), or `undecidable`, where
    this node lacks what it takes or tokens were drawn freely; `why` says it. Without --again it is null.
    """

    record: str
    author: str
    asker: str | None
    model: str
    base: str
    adapter: str | None
    options: dict[str, object]
    reason: str
    n_prompt_tokens: int
    n_tokens: int
    created_unix_s: int
    question: str
    answer: str
    question_text: str | None
    answer_text: str | None
    again: Literal["same", "other", "undecidable"] | None = None
    why: str | None = None


async def verify(node: "Node", params: Of) -> RecordIs:
    """Check the signature, show what it says; where asked, ask again. Raises: NotFound, Forged, Malformed."""
    import msgspec
    import trio

    from agents.ask.records import read_record
    from storage.cid import Cid

    cid = Cid.parse(params.cid)
    kept = await trio.to_thread.run_sync(read_record, node.adapters.ports, cid)
    record, entry = kept.signed.record, kept.signed.entry
    again, why = await _again(node, kept, params.timeout_s) if params.is_again else (None, None)
    return RecordIs(
        record=str(cid),
        author=str(entry.author),
        asker=str(entry.recipient) if entry.recipient else None,
        model=record.model,
        base=str(record.base),
        adapter=str(record.adapter) if record.adapter else None,
        options=msgspec.to_builtins(record.options),
        reason=record.reason,
        n_prompt_tokens=record.n_prompt_tokens,
        n_tokens=record.n_tokens,
        created_unix_s=record.created_unix_s,
        question=str(record.question),
        answer=str(record.answer),
        question_text=kept.turns[-1].content if kept.turns else None,
        answer_text=kept.answer,
        again=again,
        why=why,
    )


async def _again(
    node: "Node", kept: "Kept", timeout_s: float
) -> tuple[Literal["same", "other", "undecidable"], str | None]:
    """Answer the question once more, by this node's engine, and compare."""
    import trio

    from agents.ask.convert import request_of
    from agents.chat.ready import resolve
    from agents.engine import messages
    from agents.errors import UnknownName

    record = kept.signed.record
    if kept.turns is None or kept.answer is None:
        return "undecidable", "the question or the answer is not here: only the record itself is"
    models = await trio.to_thread.run_sync(node.catalog.models.list)
    model = next((row for row in models if str(record.base) in row.accepts), None)
    if model is None:
        return "undecidable", f"the model {record.model} is not here. See what there is: covey model ls"
    try:
        wish = str(record.adapter) if record.adapter else "none"
        adapter = await trio.to_thread.run_sync(resolve, node.catalog, model, wish)
    except UnknownName:
        return "undecidable", f"the adapter {record.adapter} is not here. To fetch it: covey get {record.adapter}"
    request = request_of(kept.turns, record.options, adapter.folder if adapter else None)
    said: list[str] = []
    with trio.fail_after(timeout_s):
        async with node.desk.using(model), node.engine.call(request) as replies:
            said.extend([reply.text async for reply in replies if isinstance(reply, messages.Token)])
    text = "".join(said)
    if text == kept.answer:
        return "same", None
    at = next((i for i, (a, b) in enumerate(zip(text, kept.answer, strict=False)) if a != b), len(text))
    why = f"the answers part after {at:,} characters"
    if record.options.temperature == 0:
        return (
            "other",
            f"{why}; where two tokens are almost equally likely, another machine or batch may choose otherwise",
        )
    return "undecidable", f"{why}; tokens were drawn at temperature {record.options.temperature:g}"


OPERATIONS = (
    Operation(
        noun="record",
        verb="verify",
        summary="Check the signed record of an answer, and show what it says.",
        params=Of,
        result=RecordIs,
        handler=verify,
        arguments=("cid",),
    ),
)
