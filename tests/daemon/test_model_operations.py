"""Base models over the control API: listed, shared, told of while in memory, kept while in use."""

from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
import trio

from agents.artifacts.keep import pin_name
from agents.engine.messages import EngineStatus, Loaded, ResidentAdapter
from agents.engine.model_folder import make_card, write_card
from agents.errors import EngineDied, EngineFailed, InUse
from agents.models import Desk
from daemon.api import faults
from daemon.api.operation import Nothing
from daemon.api.operations.model import Named, ps, rm
from daemon.app import open_node
from daemon.cli.forms import FORMS
from daemon.config import Config
from simulations.world import TINY, write_model
from storage.catalog.models import ModelRow
from storage.cid import Cid
from storage.keys import Identity
from storage.pins import PinKind, PinState

STATUS = EngineStatus(
    model="tiny",
    device="cpu",
    dtype="float32",
    resident_bytes=4000,
    cache_bytes=10,
    cache_budget_bytes=100,
    n_running=2,
    n_waiting=1,
    tokens_per_s=12.5,
    adapters=(ResidentAdapter("/adapters/a", 300, 8, 2), ResidentAdapter("/adapters/b", 400, 4, 0)),
)


def row_of(folder, name="tiny"):
    card = make_card(folder, name)
    write_card(folder, card)
    return ModelRow(
        name=name,
        fingerprint=card.fingerprint,
        folder=str(folder),
        source="here",
        card=msgspec.to_builtins(card),
        added_unix_s=1.0,
    )


class Engine:
    """Has a model in memory, and answers a question for its state with `says`."""

    pid = 7

    def __init__(self, says):
        self.says = says

    async def one(self, request):
        if type(request).__name__ == "Load":
            return Loaded(card=TINY, load_s=0.0)
        if self.says is None:
            await trio.sleep_forever()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def busy(tmp_path):
    """A node of which a chat is writing an answer with the model `tiny`: the operations' view of it."""
    row = row_of(write_model(tmp_path / "tiny"))

    def made(says=STATUS, chats=()):
        known = [SimpleNamespace(folder="/adapters/a", name="poet", version=3)]
        engine = Engine(says)
        return SimpleNamespace(
            engine=engine,
            desk=Desk(engine),
            chats=chats,
            row=row,
            exchange=SimpleNamespace(work=trio.to_thread.run_sync),
            adapters=SimpleNamespace(
                ports=SimpleNamespace(
                    pins=SimpleNamespace(list=list),
                    catalog=SimpleNamespace(artifacts=SimpleNamespace(find=lambda **query: [])),
                )
            ),
            catalog=SimpleNamespace(
                models=SimpleNamespace(list=lambda: [row], get=lambda name: row),
                adapters=SimpleNamespace(query=lambda: known),
            ),
        )

    return made


async def test_a_model_that_is_worked_with_is_not_removed_and_by_what_is_told(busy):
    chats = [SimpleNamespace(model=SimpleNamespace(name="tiny"))] * 2
    node = busy(chats=chats)
    async with node.desk.using(node.row, "a training"):
        with pytest.raises(InUse, match=r"tiny is in use by a training and 2 open chats\. End that first"):
            await rm(node, Named(name="tiny"))
    with pytest.raises(InUse, match="in use by 2 open chats") as refusal:
        await rm(node, Named(name="tiny"))
    assert faults.fault_of(refusal.value).exit_code == faults.EXIT_FAILED
    assert (Desk(node.engine).users(node.row), node.desk.users(node.row)) == ([], [])


async def test_what_is_in_memory_is_told_with_the_names_of_its_adapters(busy):
    node = busy()
    assert await ps(node, Nothing()) == []
    async with node.desk.using(node.row):
        (told,) = await ps(node, Nothing())
    assert (told.model, told.used_by, told.pid) == ("tiny", ["an answer that is being written"], 7)
    assert (told.resident_bytes, told.n_running, told.tokens_per_s) == (4000, 2, 12.5)
    assert [(one.name, one.version, one.n_running) for one in told.adapters] == [
        ("poet", 3, 2),
        ("/adapters/b", None, 0),
    ]
    lines = list(FORMS["model/ps"]([msgspec.to_builtins(told)]))
    assert any("poet" in line for line in lines) and any("12.5" in line for line in lines)
    node.engine.pid = None
    assert await ps(node, Nothing()) == []


@pytest.mark.parametrize("says", [EngineFailed("a Status is not for the engine"), EngineDied("killed"), None])
async def test_an_engine_that_does_not_tell_its_state_leaves_what_is_known(autojump_clock, busy, says):
    node = busy(says)
    async with node.desk.using(node.row):
        (told,) = await ps(node, Nothing())
    assert (told.model, told.resident_bytes, told.adapters) == ("tiny", None, [])
    assert any("tiny" in line for line in FORMS["model/ps"]([msgspec.to_builtins(told)]))


@pytest.fixture
async def here(home, lonely, ask):
    """A node without peers."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_node(home, Identity.generate(), Config(), print, lonely.opened))

        async def post(name, /, **params):
            return await trio.to_thread.run_sync(partial(ask, f"/v1/{name}", params))

        yield SimpleNamespace(node=node, post=post, home=home)


async def test_a_model_is_published_listed_and_removed_with_its_blocks(here):
    row = row_of(write_model(here.home.models / "tiny"))
    here.node.catalog.models.upsert(row)
    published = (await here.post("model/publish", model="tiny", tag=["small"])).lines[-1]
    assert (published["kind"], published["version"], published["is_new"]) == ("model", 1, True)
    again = (await here.post("model/publish", model="tiny", tag=["small"])).lines[-1]
    assert (again["manifest"], again["is_new"]) == (published["manifest"], False)

    (listed,) = (await here.post("model/ls")).json
    shown = (await here.post("model/show", name="tiny")).json
    assert shown == listed
    assert (listed["state"], listed["manifest"]) == ("ready", published["manifest"])
    assert any("tiny" in line for line in FORMS["model/ls"]([listed]))

    removed = (await here.post("model/rm", name="tiny")).json
    assert removed == {"name": "tiny", "freed_bytes": listed["n_bytes"]}
    assert (await here.post("model/ls")).json == [] and here.node.pins.list() == []
    assert not (here.home.models / "tiny").exists()
    assert (await here.post("model/rm", name="tiny")).json["error"]["code"] == "unknown_name"


async def test_a_model_whose_fetch_is_unfinished_is_listed_so_and_can_be_let_go(here):
    here.node.catalog.models.upsert(row_of(write_model(here.home.models / "tiny")))
    published = (await here.post("model/publish", model="tiny")).lines[-1]
    here.node.catalog.models.remove("tiny")
    manifest, files = Cid.parse(published["manifest"]), Cid.parse(published["files"])
    here.node.pins.add(files, pin_name(manifest), PinKind.RECURSIVE, PinState.FETCHING)

    (listed,) = (await here.post("model/ls")).json
    assert (listed["name"], listed["state"], listed["folder"]) == ("tiny", "partial", None)
    assert listed["n_params"] > 0
    assert any("partial" in line for line in FORMS["model/ls"]([listed]))
    assert (await here.post("model/rm", name="tiny")).json == {"name": "tiny", "freed_bytes": 0}
    assert (await here.post("model/ls")).json == [] and here.node.pins.list() == []


async def test_a_manifest_that_nobody_has_and_a_source_that_is_nothing_are_told(here):
    lacking = Cid.of(b"nobody has it", 0x71)
    told = (await here.post("model/pull", source=str(lacking), timeout_s=0.2)).lines[-1]
    assert told["error"]["code"] in ("no_providers", "timed_out")
