"""What was merged into the weights in earlier rounds: it counts for what is measured, and must fit the model."""

import pydoc_data.topics
from contextlib import nullcontext
from functools import partial

import pytest

from agents.engine.client import open_engine
from agents.errors import BadAdapter
from agents.federation.node.training import RoundEngine, find_base
from agents.federation.tasks import Exam, task_of
from agents.federation.updates.tensors import Layout, flush, new_vector, read_layout

pytestmark = pytest.mark.engine
SETTINGS = {"task": "lora", "lora": "flora", "base": "tiny", "targets": ["v_proj"], "rank": 2, "context_tokens": 32}


async def test_merged_weights_count_and_must_fit_the_model(catalog, tmp_path):
    find = partial(find_base, catalog)
    task = task_of(SETTINGS).completed(find)
    (tmp_path / "text").write_text(pydoc_data.topics.topics["assert"])
    task.initial(tmp_path / "initial", find)
    layout = read_layout(tmp_path / "initial")
    vector = new_vector(tmp_path / "moved", layout)
    vector[:] = 0.05
    flush(vector, tmp_path / "moved")
    wide = Layout.of({name: (shape[0], shape[1] + 1) if "merged" in name else shape for name, shape in layout.shapes})
    flush(new_vector(tmp_path / "wide", wide), tmp_path / "wide")
    async with open_engine(threads=1) as trainer:
        engine = RoundEngine(catalog, trainer, lambda row, use: nullcontext())
        plain = await task.evaluate(Exam(tmp_path / "initial", tmp_path / "text", engine))
        moved = await task.evaluate(Exam(tmp_path / "moved", tmp_path / "text", engine))
        assert moved.loss > plain.loss + 0.1
        with pytest.raises(BadAdapter, match="what was merged into the base has"):
            await task.evaluate(Exam(tmp_path / "wide", tmp_path / "text", engine))
