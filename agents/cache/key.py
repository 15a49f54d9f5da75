"""What makes two questions the same: everything that decides the answer, and who may be told of it."""

from typing import NamedTuple

import msgspec

from agents.ask.convert import options_of, turns_of
from agents.engine.messages import Generate
from protocols.ask.record import question_block
from storage.cid import DAG_CBOR, Cid
from storage.codecs import dag_cbor

OWN = ""  # the scope of this node's own user


class Key(NamedTuple):
    """`exact` names the question for one scope; `around` all questions that differ in their last message alone."""

    exact: bytes
    around: bytes
    question: str


def key_of(request: Generate, base: Cid, adapter: Cid | None, scope: str) -> Key:
    """The key of a question to a model with an adapter.

    `scope` keeps askers apart: what was answered to one is not even hinted at to another.
    """
    turns, options = turns_of(request), options_of(request)
    question = question_block(turns, base, adapter, options, request.text).cid
    rest = msgspec.to_builtins(msgspec.structs.replace(request, turns=(), text=None, adapter=None, id=0))
    around = [
        scope,
        base,
        adapter,
        # As text: an option that is new to the engine and not to the wire parts questions too.
        msgspec.json.encode(rest, order="sorted").decode(),
        [[turn.role, turn.content] for turn in turns[:-1]],
    ]
    return Key(
        exact=Cid.of(dag_cbor.encode([scope, question, around[3]]), DAG_CBOR).digest,
        around=Cid.of(dag_cbor.encode(around), DAG_CBOR).digest,
        question=turns[-1].content if turns else request.text or "",
    )
