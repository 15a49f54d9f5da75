"""With torch: whatever becomes of one request of a batch, the others go on."""

import dataclasses

import pytest

from agents.engine.messages import Generate, Token
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


def text_of(replies):
    return "".join(reply.text for reply in replies if isinstance(reply, Token))


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


def test_adapters_too_large_to_be_stacked_are_computed_one_after_the_other(loaded, make_adapter, tmp_path):
    folders = [str(make_adapter(tmp_path / str(n), seed=n, rank=64 if n == 3 else 4)) for n in range(4)]
    plan = [None, *folders, folders[3], folders[0], None]
    batch = new_batch(loaded)
    alone = []
    for number, folder in enumerate(plan):
        replies = asked(batch, number, adapter=folder, max_tokens=20)
        run(batch)
        alone.append(text_of(replies))

    def together(cache_bytes):
        from agents.engine.worker.generation.batch import Batch, Limits

        batch, most = Batch(loaded, Limits(cache_bytes=cache_bytes)), 0
        said = [asked(batch, number, adapter=folder, max_tokens=20) for number, folder in enumerate(plan)]
        while not batch.is_idle:
            batch.step()
            most = max(most, batch._stack.n_bytes)
        assert [text_of(replies) for replies in said] == alone
        return most

    assert together(64 << 20) > 4 << 20, "with room for them they are stacked"
    assert together(6 << 20) <= 6 << 20
