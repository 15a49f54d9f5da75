"""Fakes of the engine's worker in plain Python, and the tiny model that the engine tests share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAKE_WORKER = """
import os, sys, time
from agents.engine.framing import Unframer, encode
from agents.engine.messages import *

def send(message):
    os.write(1, encode(message))

def requests():
    unframer = Unframer()
    while data := os.read(0, 65536):
        yield from unframer.feed(data)

CARD = ModelCard(name="fake", fingerprint="b", architecture="F", n_params=1, n_layers=1, hidden_size=1, vocabulary=1,
                 context_tokens=1, dtype="F32", has_chat_template=False)

def finished(id, reason="stop"):
    return Finished(id=id, reason=reason, n_prompt_tokens=1, n_tokens=1, first_token_s=0.0, total_s=0.0)
"""


@pytest.fixture
def fake_worker(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """A worker whose behaviour is the given Python code, run after the helpers above."""

    def command(code: str) -> tuple[str, ...]:
        script = tmp_path / "worker.py"
        script.write_text(FAKE_WORKER + code)
        return (sys.executable, str(script))

    return command
