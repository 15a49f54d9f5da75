"""Which model stands in the engine, and when it is loaded anew."""

import trio

from agents.engine.messages import Load, Loaded
from agents.models import Desk
from simulations.world import TINY
from storage.catalog.models import ModelRow


class Engine:
    def __init__(self):
        self.loads = []

    async def one(self, request):
        assert isinstance(request, Load)
        self.loads.append(request.folder)
        await trio.lowlevel.checkpoint()
        return Loaded(card=TINY, load_s=0.0)


def model(name="tiny", fingerprint="one"):
    return ModelRow(
        name=name, fingerprint=fingerprint, folder=f"/models/{name}", source="tiny", card={}, added_unix_s=0.0
    )


async def use(desk, row):
    async with desk.using(row):
        assert desk.holds(row)


async def test_a_model_is_loaded_once_as_long_as_it_is_the_same():
    desk = Desk(engine := Engine())
    for _ in range(2):
        await use(desk, model())
    assert engine.loads == ["/models/tiny"]
    await use(desk, model("smol"))
    assert engine.loads == ["/models/tiny", "/models/smol"]


async def test_other_weights_under_the_same_name_are_loaded_anew():
    desk = Desk(engine := Engine())
    await use(desk, model(fingerprint="one"))
    assert not desk.holds(model(fingerprint="two"))
    await use(desk, model(fingerprint="two"))
    assert len(engine.loads) == 2


async def test_a_model_whose_folder_was_deleted_is_loaded_anew():
    desk = Desk(engine := Engine())
    await use(desk, model())
    desk.forget(model("another"))
    assert desk.holds(model())
    desk.forget(model())
    await use(desk, model())
    assert len(engine.loads) == 2


async def test_who_reads_a_model_outside_of_the_engine_is_told_of_and_keeps_nobody_out():
    desk = Desk(Engine())
    with desk.keeping(model(), "a training"), desk.keeping(model(), "a training"), desk.keeping(model(), "a merge"):
        await use(desk, model("smol"))
        async with desk.using(model()):
            assert desk.users(model()) == ["a merge", "a training", "an answer that is being written"]
        assert desk.users(model()) == ["a merge", "a training"]
        assert desk.users(model(fingerprint="two")) == []
    assert desk.users(model()) == []


async def test_who_wants_another_model_waits_for_those_who_use_the_one(autojump_clock):
    desk, order = Desk(Engine()), []

    async def work(name, seconds):
        async with desk.using(model(name)):
            order.append(f"{name} begins")
            await trio.sleep(seconds)
            order.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "tiny", 5)
        await trio.sleep(1)
        nursery.start_soon(work, "smol", 1)
    assert order == ["tiny begins", "tiny ends", "smol begins", "smol ends"]


async def test_a_model_that_is_always_in_use_keeps_nobody_out(autojump_clock):
    desk, order = Desk(Engine()), []

    async def work(name, begin_s):
        await trio.sleep(begin_s)
        async with desk.using(model(name)):
            order.append(name)
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        for name, begin_s in (("tiny", 0), ("tiny", 1), ("smol", 2), ("tiny", 3), ("tiny", 4)):
            nursery.start_soon(work, name, begin_s)
    assert order == ["tiny", "tiny", "smol", "tiny", "tiny"]


async def test_who_gives_up_waiting_holds_up_nobody(autojump_clock):
    desk = Desk(Engine())
    async with desk.using(model("tiny")):
        with trio.move_on_after(5):
            await use(desk, model("smol"))
        await use(desk, model("tiny"))
    assert trio.current_time() < 10
