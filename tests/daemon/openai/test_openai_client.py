"""OpenAI's official client against the face: what it asks for it gets, unchanged."""

import struct
from base64 import b64decode

import openai
import pytest
import trio

from agents.errors import BadAdapter, EngineDied, TooLong
from storage.cid import Cid

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def streamed(face, **options):
    """Every piece of a stream."""

    def read(stream):
        with stream:
            return list(stream)

    return await trio.to_thread.run_sync(read, await face.chat(stream=True, **options))


async def test_a_chat_is_answered(face, engine):
    made = await face.chat("hello there", max_tokens=5)
    assert made.object == "chat.completion" and made.id.startswith("chatcmpl-")
    assert made.choices[0].message.content == "hello there " and made.choices[0].finish_reason == "stop"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (10, 2, 12)
    assert made.usage.prompt_tokens_details.cached_tokens == 4
    assert made.system_fingerprint == str(Cid.of(b"base"))
    assert engine.n_open == 0


async def test_an_answer_at_its_limit_says_so(face):
    made = await face.chat("one two three", max_completion_tokens=2)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("one two ", "length")


async def test_every_option_reaches_the_engine(face, engine):
    await face.chat(
        temperature=0.5, top_p=0.9, seed=-1, stop=["a", "b"], presence_penalty=1, frequency_penalty=-1, max_tokens=9,
        extra_body={"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2},
    )  # fmt: skip
    ask = engine.asked[-1]
    assert (ask.temperature, ask.top_p, ask.top_k, ask.min_p, ask.repetition_penalty) == (0.5, 0.9, 40, 0.1, 1.2)
    assert (ask.presence_penalty, ask.frequency_penalty, ask.stop, ask.max_tokens) == (1, -1, ("a", "b"), 9)
    assert ask.seed == (1 << 63) - 1


async def test_without_options_it_samples_as_openai_does_and_each_time_anew(face, engine):
    await face.chat()
    await face.chat()
    first, second = engine.asked[-2:]
    assert (first.temperature, first.top_p, first.max_tokens) == (1.0, 1.0, 2048)
    assert first.seed != second.seed


async def test_null_is_the_default(face):
    assert (await face.chat(temperature=None, stop=None, max_tokens=None)).choices


async def test_messages_may_have_parts_and_developers_are_the_system(face, engine):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    turns = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts, "name": "bob"}]
    await face.chat(messages=turns)
    assert [(turn.role, turn.content) for turn in engine.asked[-1].turns] == [
        ("system", "be kind"),
        ("user", "one two"),
    ]


async def test_an_answer_can_be_sent_back_as_the_client_holds_it(face):
    said = (await face.chat()).choices[0].message.model_dump()
    again = [{"role": "user", "content": "hi"}, said, {"role": "user", "content": "and now"}]
    assert (await face.chat(messages=again)).choices[0].message.content == "and now "


async def test_a_stream_comes_in_pieces_and_ends_with_the_usage(face):
    pieces = await streamed(face, stream_options={"include_usage": True})
    assert {piece.id for piece in pieces} == {pieces[0].id}
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == "hello there "
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].choices == [] and pieces[-1].usage.completion_tokens == 2
    assert all(piece.usage is None for piece in pieces[:-1])


async def test_a_stream_without_the_wish_has_no_usage(face):
    assert all(piece.choices for piece in await streamed(face))


async def test_several_choices_are_asked_for_at_once_each_with_its_seed(face, engine):
    made = await face.chat(n=3, seed=5)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert sorted(ask.seed for ask in engine.asked[-3:]) == [5, 6, 7]
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (10, 6)
    pieces = await streamed(face, n=2)
    assert {piece.choices[0].index for piece in pieces} == {0, 1}


async def test_logprobs_come_with_the_likeliest_others(face):
    made = await face.chat("hello", logprobs=True, top_logprobs=2)
    [one] = made.choices[0].logprobs.content
    assert (one.token, one.logprob, bytes(one.bytes)) == ("hello ", -0.5, b"hello ")
    assert [top.logprob for top in one.top_logprobs] == [-0.5, -1.5]
    pieces = await streamed(face, logprobs=True)
    assert [piece.choices[0].logprobs.content[0].token for piece in pieces if piece.choices[0].logprobs] == [
        "hello ",
        "there ",
    ]


async def test_a_schema_reaches_the_engine_as_text(face, engine):
    kind = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    await face.chat(response_format=kind)
    assert '"required":["name"]' in engine.asked[-1].json_schema
    await face.chat(response_format={"type": "json_object"})
    assert engine.asked[-1].json_schema == '{"type":"object"}'
    await face.chat(response_format={"type": "text"})
    assert engine.asked[-1].json_schema is None


async def test_an_adapter_is_named_as_the_model(face, engine, publish):
    cid = publish("kjv", 1)
    publish("kjv", 2)
    made = await face.chat("hi", model="kjv")
    assert (made.model, made.choices[0].message.content) == ("kjv", "kjv2 hi ")
    for name in ("kjv@1", cid):
        made = await face.chat("hi", model=name)
        assert made.choices[0].message.content == "kjv1 hi "
        assert made.system_fingerprint == cid


async def test_a_name_that_nothing_has_is_never_answered_by_the_base(face, engine, publish):
    publish("kjv")
    publish("other", base=str(Cid.of(b"elsewhere")))
    publish("stranger", is_own=False)
    for name in ("kvj", "kjv@9", "other", "stranger", "latest", "none", "best:loss:min", "kjv@x", str(Cid.of(b"x"))):
        problem = await face.refused(openai.NotFoundError, model=name)
        assert (problem["code"], problem["param"]) == ("model_not_found", "model")
    assert not engine.asked


async def test_the_models_are_listed_with_their_parents(face, publish):
    cid = publish("kjv", 2)
    publish("kjv", 1)
    publish("smollm2", 3)
    models = {model.id: model for model in (await face.ask(face.client.models.list)).data}
    assert list(models) == ["smollm2", "smollm2@3", "kjv", "kjv@1", "mini"]
    assert (models["smollm2"].parent, models["smollm2"].root) == (None, str(Cid.of(b"base")))
    assert (models["kjv"].parent, models["kjv"].root, models["kjv"].owned_by) == ("smollm2", cid, "you")
    assert (models["smollm2"].created, models["kjv"].created) == (7, 5)
    for name in models:
        assert await face.ask(face.client.models.retrieve, model=name) == models[name]
    assert (await face.ask(face.client.models.retrieve, model="kjv@1")).parent == "smollm2"
    with pytest.raises(openai.NotFoundError):
        await face.ask(face.client.models.retrieve, model="nope")


async def test_a_text_is_completed(face):
    create = face.client.completions.create
    made = await face.ask(create, model="smollm2", prompt="once upon", echo=True, max_tokens=4)
    assert (made.object, made.choices[0].text) == ("text_completion", "once upononce upon ")
    with await face.ask(create, model="smollm2", prompt="x y ", echo=True, stream=True) as stream:
        assert "".join([piece.choices[0].text for piece in await trio.to_thread.run_sync(list, stream)]) == "x y x y "
    made = await face.ask(create, model="smollm2", prompt=["a", "b"], n=2, logprobs=1)
    assert [choice.text for choice in made.choices] == ["a ", "a ", "b ", "b "]
    assert made.usage.prompt_tokens == 20
    assert made.choices[0].logprobs.tokens == ["a "] and made.choices[0].logprobs.top_logprobs == [{"a ": -0.5}]

    def read():
        with face.client.completions.create(model="smollm2", prompt="x y", stream=True, logprobs=0) as s:
            return list(s)

    pieces = await trio.to_thread.run_sync(read)
    assert "".join(piece.choices[0].text for piece in pieces) == "x y "
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert pieces[1].choices[0].logprobs.text_offset == [2]


async def test_texts_are_embedded_as_floats_and_as_base64(face, engine, encoder):
    create = face.client.embeddings.create
    made = await face.ask(create, model="mini", input=["a", "b"])  # the client asks for base64 and reads it
    assert [row.embedding for row in made.data] == [[1.0, 0.0]] * 2
    assert made.usage.prompt_tokens == 6
    made = await face.ask(create, model="mini", input="a", encoding_format="float")
    assert made.data[0].embedding == [1.0, 0.0]
    made = await face.ask(create, model="mini", input="a", encoding_format="base64", dimensions=2)
    assert struct.unpack("<2f", b64decode(made.data[0].embedding)) == (1.0, 0.0)
    assert engine.asked[-1].folder == str(encoder)
    for wrong in ({"input": []}, {"input": [[1, 2]]}, {"dimensions": 3}, {"model": "smollm2"}):
        with pytest.raises(openai.BadRequestError):
            await face.ask(create, **{"model": "mini", "input": "a"} | wrong)
    with pytest.raises(openai.NotFoundError):
        await face.ask(create, model="nope", input="a")
    assert "encoder" in (await face.refused(openai.BadRequestError, model="mini"))["message"]


async def test_requests_of_several_adapters_run_at_the_same_time(face, engine, publish):
    names = [publish(f"a{number}") and f"a{number}" for number in range(3)]
    async with trio.open_nursery() as nursery:
        for name in [*names, "smollm2"]:
            nursery.start_soon(lambda name=name: face.chat("hang", model=name))
        with trio.fail_after(10):
            while engine.n_open < 4:
                await trio.sleep(0.01)
        engine.hold.set()
    assert engine.n_most_open == 4 and engine.n_open == 0


async def test_leaving_a_stream_frees_the_engine_at_once(face, engine, node):
    def leave(stream):
        with stream:
            return next(iter(stream))

    await trio.to_thread.run_sync(leave, await face.chat("one hang", stream=True))
    with trio.fail_after(10):
        while engine.n_open or node.openai.n_answers:
            await trio.sleep(0.01)


async def test_a_client_that_gives_up_waiting_frees_the_engine_too(face, engine):
    with pytest.raises(openai.APITimeoutError):
        await face.chat("hang", timeout=0.3)
    with trio.fail_after(10):
        while engine.n_open:
            await trio.sleep(0.01)


async def test_errors_of_the_engine_have_openais_shape(face, engine):
    engine.error = EngineDied("the engine died: it was killed by SIGKILL")
    problem = await face.refused(openai.InternalServerError, "fail")
    assert (problem["status"], problem["type"], problem["code"]) == (503, "server_error", "engine_died")
    engine.error = TooLong("the prompt has 9 tokens, tiny takes 5: shorten it")
    problem = await face.refused(openai.BadRequestError, "fail", n=2)
    assert (problem["code"], problem["param"]) == ("context_length_exceeded", "messages")
    engine.error = BadAdapter("NaN in it")
    assert (await face.refused(openai.BadRequestError, "fail"))["code"] == "bad_adapter"
    engine.error = ZeroDivisionError("secret")
    problem = await face.refused(openai.InternalServerError, "fail")
    assert problem["code"] == "internal" and "secret" not in problem["message"]
    assert engine.n_open == 0


async def test_an_error_in_mid_stream_is_the_streams_last_event(face, engine):
    engine.error = EngineDied("the engine died")
    with pytest.raises(openai.APIError, match="the engine died"):
        await streamed(face, messages=[{"role": "user", "content": "one fail"}])
    with pytest.raises(openai.InternalServerError, match="the engine died"):  # before the first piece: a status
        await streamed(face, messages=[{"role": "user", "content": "fail"}])


async def test_an_answer_over_its_time_is_ended(face, engine, node):
    face.app._limits = type(face.app._limits)(n_answers=8, answer_s=0.2)
    problem = await face.refused(openai.InternalServerError, "hang")
    assert (problem["status"], problem["code"]) == (504, "timed_out")
    assert engine.n_open == 0 and node.openai.n_answers == 0


async def test_a_full_queue_says_to_come_again(face, engine, node):
    problem = await face.refused(openai.RateLimitError, n=9)
    assert (problem["type"], problem["code"]) == ("requests", "rate_limit_exceeded")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: face.chat("hang", n=8))
        with trio.fail_after(10):
            while node.openai.n_answers < 8:
                await trio.sleep(0.01)
        await face.refused(openai.RateLimitError)
        engine.hold.set()
    assert (await face.chat("hi")).choices


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2049}, "max_tokens"),
        ({"max_completion_tokens": 1 << 40}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * ((4 << 20) + 1)}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
async def test_what_is_not_done_here_is_refused_by_name(face, engine, options, param):
    problem = await face.refused(openai.BadRequestError, **options)
    assert (problem["type"], problem["param"]) == ("invalid_request_error", param)
    assert not engine.asked


async def test_what_changes_no_answer_is_ignored_and_told(face):
    raw = face.client.chat.completions.with_raw_response.create
    turns = [{"role": "user", "content": "hi"}]
    said = await face.ask(raw, model="smollm2", messages=turns, user="bob", store=True, tools=[], tool_choice="none")
    assert said.headers["x-covey-ignored"] == "store, user"
    assert "x-covey-ignored" not in (await face.ask(raw, model="smollm2", messages=turns)).headers


async def test_the_token_is_needed_and_a_renewed_one_takes_the_place_of_the_old(face, node):
    with pytest.raises(openai.AuthenticationError) as caught:
        await face.ask(face.client.with_options(api_key="covey-wrong").models.list)
    assert caught.value.body["code"] == "invalid_api_key"
    renewed = node.openai.token.renew()
    with pytest.raises(openai.AuthenticationError):
        await face.ask(face.client.models.list)
    assert (await face.ask(face.client.with_options(api_key=renewed).models.list)).data
