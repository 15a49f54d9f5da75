import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.aggregation.updates import CannotAggregate
from agents.federation.results.outcome import Submitted, compute, document
from agents.federation.updates.compression.codec import BadCompressed, Codec
from agents.federation.updates.compression.levels import BLOCK
from agents.federation.updates.compression.registry import CODECS, codec_of
from agents.federation.updates.tensors import Layout, new_vector, read_vector
from protocols.rounds import Plan, Submit
from storage.cid import RAW, Cid
from tests.agents.federation.village import cid_of, identity

LAYOUT = Layout.of({"a.weight": (40, 30), "b.bias": (7,), "c.weight": (3, 5, 20), "d.scalar": ()})
SETTINGS = (
    {"codec": "int8"},
    {"codec": "top_k", "part": 0.02},
    {"codec": "top_k", "part": 0.1, "bits": 32},
    {"codec": "powersgd", "rank": 2},
    {"codec": "powersgd", "rank": 1, "bits": 32},
)
CODEC = pytest.mark.parametrize("codec", [codec_of(settings) for settings in SETTINGS], ids=map(str, SETTINGS))


def vector(seed: int, layout: Layout = LAYOUT) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal(layout.n_params).astype(np.float32)


def test_every_codec_that_there_is_has_an_example() -> None:
    assert {settings["codec"] for settings in SETTINGS} == CODECS.keys()


@CODEC
def test_what_is_left_out_comes_later(codec: Codec) -> None:
    """The same update again and again: what arrived comes to what was sent, but for what waits in the memory."""
    update, memory = vector(1), np.zeros(LAYOUT.n_params, np.float32)
    arrived = np.zeros(LAYOUT.n_params)
    for _ in range(60):
        arrived += codec.decode(codec.encode(update, LAYOUT, memory), LAYOUT)
    np.testing.assert_allclose(arrived + memory, 60.0 * update, rtol=1e-3, atol=1e-3)
    assert np.linalg.norm(memory) < 40.0 * np.linalg.norm(update)


@CODEC
def test_bytes_are_bounded_and_the_same_for_the_same_update(codec: Codec) -> None:
    data = codec.encode(vector(2), LAYOUT)
    assert data == codec.encode(vector(2), LAYOUT)
    assert len(data) <= codec.max_bytes(LAYOUT) < 4 * LAYOUT.n_params


@CODEC
def test_an_update_of_zeros_comes_back(codec: Codec) -> None:
    zeros = np.zeros(LAYOUT.n_params, np.float32)
    assert (codec.decode(codec.encode(zeros, LAYOUT), LAYOUT) == 0.0).all()


@CODEC
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_sent(codec: Codec, bad: float) -> None:
    update = vector(3)
    update[5] = bad
    with pytest.raises(CannotAggregate, match="NaN or infinity"):
        codec.encode(update, LAYOUT)
    with pytest.raises(CannotAggregate, match="shape"):
        codec.encode(vector(3)[:-1], LAYOUT)


@CODEC
def test_bytes_that_were_cut_or_go_on_are_refused(codec: Codec) -> None:
    data = codec.encode(vector(4), LAYOUT)
    for length in range(0, len(data), 3):
        with pytest.raises(BadCompressed):
            codec.decode(data[:length], LAYOUT)
    with pytest.raises(BadCompressed, match="follow"):
        codec.decode(data + b"\0", LAYOUT)


@CODEC
@given(data=st.data())
def test_changed_bytes_are_refused_or_read_as_numbers_of_the_layout(codec: Codec, data: st.DataObject) -> None:
    changed = bytearray(codec.encode(vector(5), LAYOUT))
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = codec.decode(bytes(changed), LAYOUT)
    except BadCompressed:
        return
    assert found.shape == (LAYOUT.n_params,) and found.dtype == np.float32


@CODEC
@given(data=st.binary(max_size=2000))
def test_any_bytes_are_refused_or_read_as_numbers_of_the_layout(codec: Codec, data: bytes) -> None:
    with contextlib.suppress(BadCompressed):
        assert codec.decode(data, LAYOUT).shape == (LAYOUT.n_params,)


def test_decoded_bits_are_those_of_every_other_machine() -> None:
    found = hashlib.sha256()
    for settings in SETTINGS:
        codec = codec_of(settings)
        stream = hashlib.shake_256(b"update").digest(2 * LAYOUT.n_params)
        update = (np.frombuffer(stream, "<i2") / np.float32(4096.0)).astype(np.float32)
        found.update(codec.decode(codec.encode(update, LAYOUT), LAYOUT).astype("<f4").tobytes())
    assert found.hexdigest() == "1450344c8f2288f57f6c9454f9a5982051e12f05ddea381d2350a5a519723f41"


def test_eight_bits_err_by_half_a_level_of_their_block() -> None:
    layout = Layout.of({"x": (3 * BLOCK + 5,)})
    update = vector(6, layout) * np.repeat(np.float32([1e-4, 1.0, 100.0, 1.0]), BLOCK)[: layout.n_params]
    codec = codec_of({"codec": "int8"})
    found = codec.decode(codec.encode(update, layout), layout)
    for start in range(0, layout.n_params, BLOCK):
        part = slice(start, start + BLOCK)
        assert np.abs(found[part] - update[part]).max() <= np.abs(update[part]).max() / 254.0 * 1.001


def test_the_largest_are_kept_over_several_pages() -> None:
    layout = Layout.of({"x": (150_000,)})
    update = vector(7, layout)
    codec = codec_of({"codec": "top_k", "part": 0.001, "bits": 32})
    found = codec.decode(codec.encode(update, layout), layout)
    kept = np.argsort(-np.abs(update))[:150]
    assert set(np.flatnonzero(found)) == set(kept)
    assert (found[kept] == update[kept]).all()


def test_places_out_of_order_or_beyond_the_end_are_refused() -> None:
    layout = Layout.of({"x": (100,)})
    codec = codec_of({"codec": "top_k", "part": 0.02, "bits": 32})
    good = codec.encode(vector(8, layout), layout)
    count, values = good[:4], good[8:]
    for places in ((5, 5), (6, 5), (5, 100), (5, 65535)):
        with pytest.raises(BadCompressed, match="places"):
            codec.decode(count + np.array(places, "<u2").tobytes() + values, layout)
    with pytest.raises(BadCompressed, match="places"):
        codec.decode(b"\xff\xff\xff\xff" + good[4:], layout)
    with pytest.raises(BadCompressed, match="NaN"):
        codec.decode(good[:8] + np.float32([np.nan, 1.0]).tobytes(), layout)


def test_a_matrix_of_low_rank_goes_through_whole() -> None:
    chance = np.random.default_rng(9)
    layout = Layout.of({"x": (60, 50)})
    update = (chance.standard_normal((60, 2)) @ chance.standard_normal((2, 50))).astype(np.float32).ravel()
    codec = codec_of({"codec": "powersgd", "rank": 2, "bits": 32})
    np.testing.assert_allclose(codec.decode(codec.encode(update, layout), layout), update, atol=1e-5)


def test_compressed_updates_are_admitted_by_what_they_decode_to(tmp_path: Path) -> None:
    codec = codec_of(SETTINGS[0])
    plan = Plan(
        title="t", task={"task": "t"}, initial=cid_of("i"), members=(identity(0).peer_id,),
        deputies=(identity(0).peer_id,), compression=dict(SETTINGS[0]), max_norm=100.0,
    )  # fmt: skip
    base = tmp_path / "base"
    new_vector(base, LAYOUT)[:] = 1.0
    good, long = codec.encode(vector(1), LAYOUT), codec.encode(vector(2) * np.float32(100.0), LAYOUT)
    sent = [good, long, good[:-1], good + bytes(5000), codec.encode(np.zeros(LAYOUT.n_params, np.float32), LAYOUT)]
    submitted = []
    for number, data in enumerate(sent):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        submit = Submit(round=1, base=cid_of("i"), update=Cid.of(data, RAW), n_samples=1)
        submitted.append(Submitted(identity(number).peer_id, submit, path, 0))
    documents = []
    for name, order in (("one", submitted), ("other", submitted[::-1])):
        (tmp_path / name).mkdir()
        outcome = compute(plan, base, order, tmp_path / name, seed=b"")
        reasons = {verdict.update: verdict.reason for verdict in outcome.verdicts}
        tensors = Cid.of(outcome.tensors.read_bytes(), RAW)
        documents.append(document(cid_of("p"), 1, cid_of("i"), outcome, tensors, [])[0])
    assert [reasons[one.submit.update] == "" for one in submitted] == [True, False, False, False, False]
    assert "norm" in reasons[submitted[1].submit.update]
    assert "ends after" in reasons[submitted[2].submit.update]
    assert "no update takes more" in reasons[submitted[3].submit.update]
    assert "zero everywhere" in reasons[submitted[4].submit.update]
    np.testing.assert_array_equal(read_vector(outcome.tensors, LAYOUT), codec.decode(good, LAYOUT) + np.float32(1.0))
    assert documents[0] == documents[1]
