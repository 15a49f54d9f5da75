"""The face and the backend as parts of a whole node."""

import socket

import httpx
import msgspec
import pytest
import trio

from daemon.app import open_node
from daemon.config import BackendConfig, Config, OpenAiConfig
from daemon.errors import BadConfig
from storage.keys import Identity


def opened(home, lonely, config):
    return open_node(home, Identity.generate(), config, print, lonely.opened)


async def test_a_node_has_a_face_only_where_it_is_asked_for(home, lonely):
    async with opened(home, lonely, Config()) as node:
        assert node.openai.url is None and not home.openai_token.exists()
    async with opened(home, lonely, Config(openai=OpenAiConfig(is_enabled=True, port=0))) as node:
        token = node.openai.token.value()

        def ask():
            headers = {"authorization": f"Bearer {token}"}
            return httpx.get(f"{node.openai.url}/models", headers=headers, trust_env=False, timeout=20)

        reply = await trio.to_thread.run_sync(ask)
        assert reply.json()["object"] == "list"
        assert node.openai.n_requests == 1


async def test_a_port_that_is_taken_is_told_with_its_setting(home, lonely):
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = Config(openai=OpenAiConfig(is_enabled=True, port=other.getsockname()[1]))
        with pytest.raises(BaseExceptionGroup) as caught:
            async with opened(home, lonely, config):
                pass
    [error] = flat(caught.value)
    assert isinstance(error, BadConfig) and "covey config set openai.port 0" in str(error)


def flat(error):
    return [one for inner in error.exceptions for one in flat(inner)] if hasattr(error, "exceptions") else [error]


async def test_a_backend_that_does_not_answer_is_told_and_the_node_runs(home, lonely):
    config = Config(backend=BackendConfig(url="http://127.0.0.1:1/v1", model="Big", kind="vllm"))
    async with opened(home, lonely, config) as node:
        assert node.config.engine.model == "Big"
        with trio.fail_after(20):
            while "backend_missing" not in [event.kind for event in node.catalog.events.since()]:
                await trio.sleep(0.01)
    wrong = msgspec.structs.replace(config, backend=BackendConfig(url="http://127.0.0.1:1/v1"))
    with pytest.raises(BadConfig, match=r"backend\.model"):
        async with opened(home, lonely, wrong):
            pass
