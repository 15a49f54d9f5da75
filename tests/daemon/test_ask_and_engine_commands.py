"""What `covey ask` and `covey engine` print, and what the daemon makes of a question."""

from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import pytest

from agents.cache.answers import AnswerCache
from agents.cache.stores import MemoryAnswers
from agents.engine import messages
from agents.engine.client import Health
from agents.errors import BadAdapter, EngineDied, UnknownName
from agents.models import Desk
from daemon.answering import who_answers
from daemon.api.operations import ask as ask_module
from daemon.api.operations import engine as engine_module
from daemon.cli.ask import _Answer
from daemon.cli.engine_form import engine_lines
from daemon.config import Config
from daemon.paths import Home
from simulations.world import make_identity
from storage.catalog import Catalog
from storage.catalog.adapters import AdapterRow, AdapterState
from storage.catalog.models import ModelRow
from storage.cid import DAG_CBOR, Cid

BASE = str(Cid.of(b"base", DAG_CBOR))
CARD = {
    "name": "tiny",
    "fingerprint": BASE,
    "architecture": "LlamaForCausalLM",
    "n_params": 1000,
    "n_layers": 1,
    "hidden_size": 8,
    "vocabulary": 100,
    "context_tokens": 1024,
    "dtype": "F32",
    "has_chat_template": True,
}
STATUS = messages.EngineStatus(
    model="tiny",
    device="cpu",
    dtype="float32",
    resident_bytes=4 << 20,
    cache_bytes=1 << 20,
    cache_budget_bytes=64 << 20,
    adapter_budget_bytes=512 << 20,
    n_running=2,
    n_waiting=1,
    tokens_per_s=41.5,
    adapters=(messages.ResidentAdapter(folder="/adapters/x", n_bytes=2048, rank=8, n_running=1),),
)


class FakeEngine:
    pid, n_calls = 1, 0

    def __init__(self) -> None:
        self.asked: list[messages.Generate] = []
        self.error: Exception | None = None
        self.said: messages.EngineStatus | None = STATUS
        self.is_stopped = False
        self.n_loads = 0
        self.calls = {"generate": 2}

    @asynccontextmanager
    async def call(self, request):
        self.asked.append(request)

        async def replies():
            yield messages.Token(id=0, text="So")
            if self.error:
                raise self.error
            yield messages.Finished(id=0, reason="stop", n_prompt_tokens=3, n_tokens=1, first_token_s=0.1, total_s=0.2)

        async with aclosing(replies()) as said:
            yield said

    async def one(self, request):
        if isinstance(request, messages.Stage):
            raise BadAdapter("its weights are of another model")
        self.n_loads += 1
        return messages.Loaded(id=0, card=messages.ModelCard(**CARD), load_s=0.0)

    async def status(self):
        return self.said

    def health(self):
        return Health(
            pid=1, has_answered=True, started_s=0.0, calls=self.calls, n_starts=3, n_deaths=2,
            last_death="the engine died: it was killed by SIGKILL", last_death_s=0.0, wait_s=0.0,
        )  # fmt: skip

    def stop(self):
        was_stopped, self.is_stopped = self.is_stopped, True
        return not was_stopped


@pytest.fixture
def node(tmp_path):
    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.models.upsert(ModelRow(name="tiny", fingerprint=BASE, folder="/m", source="x", card=CARD, added_unix_s=1.0))
    engine = FakeEngine()
    yield SimpleNamespace(
        config=Config(),
        home=Home(tmp_path),
        catalog=catalog,
        engine=engine,
        trainer=engine,
        workshop=engine,
        training_now={"poet"},
        desk=Desk(engine),
        answers=AnswerCache([MemoryAnswers(1 << 20, 1e9)], max_distance=0.0, unix_s=lambda: 1.0),
    )
    catalog.close()


async def asked(node, **params):
    return [event async for event in ask_module.say(node, ask_module.Question(text="why?", **params))]


async def test_a_question_goes_to_the_engine_with_all_its_options_once(node):
    options = {"max_tokens": 9, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ("x",)}
    loading, token, finished = await asked(node, **options)
    again = await asked(node, **options)

    assert (loading.model, token.text, finished.cache) == ("tiny", "So", "none")
    assert again[-1].cache == "exact"
    (request,) = node.engine.asked
    assert {name: getattr(request, name) for name in options} == options
    assert [turn.role for turn in request.turns] == ["system", "user"]


async def test_what_was_answered_before_needs_no_model_in_the_engine(node):
    await asked(node)
    node.desk.forget(node.catalog.models.get("tiny"))
    n_loads = node.engine.n_loads
    assert (await asked(node))[-1].cache == "exact"
    assert node.engine.n_loads == n_loads == 1


async def test_a_free_draw_is_another_each_time_and_a_seeded_one_is_not(node):
    for _ in range(2):
        await asked(node, temperature=1.0)
    assert len({request.seed for request in node.engine.asked}) == 2
    for _ in range(2):
        await asked(node, temperature=1.0, seed=5)
    assert len(node.engine.asked) == 3


async def test_a_dead_engine_is_an_event_and_the_next_question_is_answered(node):
    node.engine.error = EngineDied("it was killed")
    assert (await asked(node))[-1].code == "engine_died"
    node.engine.error = None
    assert (await asked(node))[-1].reason == "stop"


async def test_who_names_an_adapter_gets_its_answer_or_an_error_and_never_the_bases(node):
    manifest = Cid.of(b"manifest", DAG_CBOR)
    about = {"is_own": True, "rank": 2, "n_bytes": 9, "created_unix_s": 1, "heard_unix_s": 1.0}
    publisher = make_identity(1, "ann").peer_id
    row = AdapterRow(manifest=manifest, name="poet", base=BASE, publisher=publisher, version=1, **about)
    node.catalog.adapters.upsert(row)
    node.catalog.adapters.set_state(manifest, AdapterState.READY, 2.0, folder=f"/adapters/{manifest}")
    for wish in ("poet", "poet@1", str(manifest)):
        failed = (await asked(node, adapter=wish))[-1]
        assert (failed.code, failed.text) == (
            "bad_adapter", "poet cannot be used: its weights are of another model"
        )  # fmt: skip
    assert node.engine.asked == []
    told = [type(event).__name__ for event in await asked(node, adapter="latest")]
    assert told == ["Refused", "Token", "Finished"]  # who follows the newest goes on with the one before


async def test_an_adapter_that_is_named_brings_its_base_with_it(node):
    other = str(Cid.of(b"other", DAG_CBOR))
    card = CARD | {"name": "big", "fingerprint": other}
    node.catalog.models.upsert(
        ModelRow(name="big", fingerprint=other, folder="/b", source="x", card=card, added_unix_s=1.0)
    )
    with pytest.raises(UnknownName, match=r"the usual model, 'smollm2', is not here; there are: big, tiny\. Name one"):
        await asked(node)
    assert (await asked(node, model="tiny"))[-1].reason == "stop"
    about = {"is_own": True, "rank": 2, "n_bytes": 9, "created_unix_s": 1, "heard_unix_s": 1.0}
    manifest, publisher = Cid.of(b"manifest", DAG_CBOR), make_identity(1, "ann").peer_id
    node.catalog.adapters.upsert(
        AdapterRow(manifest=manifest, name="poet", base=other, publisher=publisher, version=1, **about)
    )
    node.catalog.adapters.set_state(manifest, AdapterState.READY, 2.0, folder="/adapters/poet")
    for wish in ("poet", "poet@1", str(manifest)):
        model, adapter = who_answers(node, None, wish)
        assert (model.name, adapter.name) == ("big", "poet")
    for name, wish in (("tiny", "poet"), (None, "nobody")):
        with pytest.raises(UnknownName, match=f"there is no adapter {wish}"):
            who_answers(node, name, wish)


async def test_what_was_trained_and_not_published_is_told_from_what_is_not_here(node):
    (node.home.training / "sums").mkdir(parents=True)
    (node.home.training / "sums" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnknownName, match=r"sums was trained here.*covey adapter publish sums"):
        await asked(node, adapter="sums")
    for wish in ("other", "../training/sums", "sums@1"):
        with pytest.raises(UnknownName, match="there is no adapter"):
            await asked(node, adapter=wish)


async def test_the_engine_is_told_as_it_is(node):
    (status,) = [one async for one in engine_module.status(node, engine_module.Watch())]
    assert (status.state, status.n_restarts, status.n_deaths, status.tokens_per_s) == ("busy", 2, 2, 41.5)
    assert status.adapters[0].name == "/adapters/x"
    assert (status.trainer.pid, status.trainer.trainings, status.trainer.n_deaths) == (1, ["poet"], 2)
    node.engine.calls = {"load": 1}
    (status,) = [one async for one in engine_module.status(node, engine_module.Watch())]
    assert status.state == "loading"
    node.engine.said, node.engine.calls = None, {}
    (status,) = [one async for one in engine_module.status(node, engine_module.Watch())]
    assert (status.state, status.model, status.adapters) == ("ready", None, [])


async def test_a_watch_goes_on_until_nobody_looks(node, autojump_clock):
    n_seen = 0
    async with aclosing(engine_module.status(node, engine_module.Watch(is_watch=True))) as watched:
        async for _ in watched:
            n_seen += 1
            if n_seen == 3:
                break
    assert n_seen == 3


async def test_stopping_what_does_not_run_is_no_error(node):
    assert (await engine_module.stop(node, None)).text.startswith("stopped")
    assert "was not running" in (await engine_module.stop(node, None)).text


IDLE = {"pid": None, "rss_bytes": None, "trainings": [], "calls": {}, "last_death": None, "last_death_s_ago": None}


def shown(**changes):
    known = {
        "state": "busy", "pid": 7, "uptime_s": 61.0, "rss_bytes": 1 << 30, "model": "tiny", "device": "cpu",
        "dtype": "F32", "n_running": 2, "n_waiting": 1, "tokens_per_s": 41.5, "cache_bytes": 1 << 20,
        "cache_budget_bytes": 64 << 20, "adapter_budget_bytes": 512 << 20,
        "adapters": [{"name": "poet v1", "n_bytes": 2048, "rank": 8, "n_running": 1}],
        "calls": {"generate": 2}, "n_restarts": 2, "n_deaths": 1, "last_death": "the engine died: killed\x1b[2J",
        "last_death_s_ago": 5.0, "wait_s": 0.0, "trainer": IDLE, "workshop": IDLE, "backend": None,
    }  # fmt: skip
    return "\n".join(engine_lines(known | changes))


def test_the_status_reads_in_lines_and_what_is_unknown_is_left_out():
    text = shown()
    for part in (
        "busy, process 7",
        "2 running, 1 waiting, 41.5 tok/s",
        "poet v1  rank 8",
        "2 generate",
        "1.0 GiB",
        "adapters 2.0 KiB of 512.0 MiB",
    ):
        assert part in text
    assert "\x1b" not in text
    unknown = dict.fromkeys(
        ("pid", "uptime_s", "rss_bytes", "model", "n_running", "cache_budget_bytes", "last_death"), None
    )
    text = shown(**unknown, state="stopped", calls={}, adapters=[])
    assert text == "engine    stopped: the next request starts it\nrestarts  2, deaths 1"
    assert "may start again" in shown(**unknown, state="waiting", wait_s=4.0)


def test_a_backend_comes_first_with_what_is_wrong_with_it():
    backend = {
        "url": "http://big:8000/v1", "kind": "vllm", "model": "org/Big\x1b[2J", "name": "Big", "n_running": 3,
        "adapters": ["poet v1", "covey-bafy"], "trouble": None,
    }  # fmt: skip
    first, second, third, fourth, *_ = shown(backend=backend, state="stopped", pid=None, uptime_s=None).split("\n")
    assert first == "backend   http://big:8000/v1 (vllm), its model org/Big[2J"
    assert [second.strip(), third.strip()] == ["answers, 3 running", "was given poet v1, covey-bafy"]
    assert fourth == "engine    stopped: what is not the backend's starts it"
    assert "does not answer: refused" in shown(backend=backend | {"trouble": "refused", "adapters": []})


def test_the_trainer_is_told_of_where_there_is_one_or_was():
    busy = {"pid": 9, "rss_bytes": 1 << 29, "trainings": ["poet"], "calls": {"train": 1, "merge": 1}}
    died = {"last_death": "the engine died: killed\x1b[2J", "last_death_s_ago": 61.0}
    *_, first, second = shown(trainer=IDLE | busy | died).split("\n")
    assert first == "trainer   process 9, 512.0 MiB in use: training poet, 1 merge"
    assert second.strip() == "died 1 min 1 s ago: the engine died: killed[2J"
    assert "nothing to do" in shown(trainer=IDLE | {"pid": 9})
    *_, last = shown(workshop=IDLE | died).split("\n")
    assert last == "workshop  died 1 min 1 s ago: the engine died: killed[2J"


def test_what_a_peer_wrote_does_not_move_the_cursor(capsys):
    answer = _Answer(max_tokens=3)
    answer.show({"type": "token", "text": "a\x1b[2J\u202eb\nc"})
    answer.show(
        {
            "type": "finished",
            "reason": "length",
            "n_tokens": 3,
            "cache": "semantic",
            "distance": 0.03,
            "threshold": 0.05,
        }
    )
    answer.show({"type": "recorded", "record": "bafy\x1b[2J"})
    out, err = capsys.readouterr()
    assert out == "a[2Jb\nc\n"
    assert "\x1b" not in err and "0.030" in err and "--max-tokens" in err


def test_an_answer_that_filled_the_context_is_not_told_to_ask_for_more(capsys):
    answer = _Answer(max_tokens=60_000)
    answer.show({"type": "finished", "reason": "length", "n_tokens": 512, "cache": "none"})
    err = capsys.readouterr().err
    assert "cut at 512 tokens" in err and "context" in err and "--max-tokens" not in err
