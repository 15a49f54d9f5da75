"""With torch: whatever becomes of one request of a batch, the others go on."""

import dataclasses

import pytest

from agents.engine.messages import Generate
from agents.errors import BadModel

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def loaded(tiny_model):
    from agents.engine.worker.models import load_model

    return load_model(tiny_model)


def new_batch(loaded):
    from agents.engine.worker.generation.batch import Batch, Limits

    return Batch(loaded, Limits(cache_bytes=64 << 20))


def asked(batch, number, **options):
    """Ask; the replies come into the list that is returned."""
    replies = []
    batch.start(Generate(id=number, text="The import statement", **options), replies.append, lambda: False)
    return replies


def run(batch):
    while not batch.is_idle:
        batch.step()


@pytest.mark.parametrize("part", ["sampler.choose", "stream.feed"])
def test_what_nobody_thought_of_ends_one_request_and_harms_no_other(loaded, part):
    def breaks(*_):
        raise IndexError("nobody thought of this")

    batch = new_batch(loaded)
    sound = [asked(batch, n, max_tokens=20, n_logprobs=0) for n in (1, 2)]
    broken = asked(batch, 3, max_tokens=20, n_logprobs=0)
    whose, name = part.split(".")
    setattr(getattr(batch._sequences[3], whose), name, breaks)
    run(batch)
    assert broken[-1].text == "IndexError: nobody thought of this"
    assert [each[-1].n_tokens for each in sound] == [20, 20]


def test_a_token_that_the_model_does_not_have_harms_no_other(loaded):
    batch = new_batch(loaded)
    sound = asked(batch, 1, max_tokens=20)
    batch._loaded = dataclasses.replace(loaded, tokenizer=lambda text, **_: {"input_ids": [1, loaded.width]})
    with pytest.raises(BadModel, match="more tokens than the model"):
        asked(batch, 2)
    batch._loaded = loaded
    run(batch)
    assert sound[-1].n_tokens == 20
