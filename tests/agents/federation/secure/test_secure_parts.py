"""Shares, levels and masks, each by itself."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.federation.secure import group, masks, shamir
from agents.federation.secure.quantise import Grid, mean_of_sum, quantise

SECRET = group.secret_of(int.from_bytes(bytes(range(32))))


@given(st.integers(1, group.ORDER - 1), st.integers(1, 8), st.data())
def test_any_threshold_of_shares_gives_the_secret_back_and_each_fits(
    number: int, threshold: int, data: st.DataObject
) -> None:
    secret, n_shares = group.secret_of(number), data.draw(st.integers(threshold, 10))
    shares, commitments = shamir.split(secret, threshold, n_shares)
    chosen = data.draw(st.lists(st.sampled_from(sorted(shares)), min_size=threshold, unique=True))
    assert shamir.combine({x: shares[x] for x in chosen}, threshold) == secret
    assert len(commitments) == threshold and commitments[0] == group.public(secret)
    x = chosen[0]
    assert shamir.fits(shares[x], x, commitments)
    assert not shamir.fits(group.secret_of(group.number_of(shares[x]) + 1), x, commitments)
    assert threshold == 1 or not shamir.fits(shares[x], x + 1, commitments)


def test_fewer_shares_fit_every_secret() -> None:
    """With one share short, each other secret has a last share that leads to it: they tell nothing."""
    shares = shamir.split(SECRET, 2, 2, lambda most: 12345).shares
    y = group.number_of(shares[1])
    for other in (0, 1, group.ORDER - 1):
        last = 2 * y - other  # the line through (0, other) and (1, y), at 2
        assert shamir.combine({1: shares[1], 2: group.secret_of(last)}, 2) == group.secret_of(other)


def test_shares_are_what_the_scheme_says() -> None:
    shares = shamir.split(SECRET, 3, 3, lambda most: 6).shares
    secret = group.number_of(SECRET)
    assert [group.number_of(shares[x]) for x in (1, 2, 3)] == [
        (secret + 7 * x + 7 * x * x) % group.ORDER for x in (1, 2, 3)
    ]


@pytest.mark.parametrize("x", [2, 3, 5])
def test_a_share_that_was_changed_is_noticed_when_there_are_more_than_needed(x: int) -> None:
    shares = shamir.split(SECRET, 3, 5).shares
    shares[x] = group.secret_of(group.number_of(shares[x]) ^ 1)
    with pytest.raises(shamir.BadShares):
        shamir.combine(shares, 3)


@pytest.mark.parametrize(
    "shares",
    [{}, {1: bytes(32)}, {1: bytes(32), 2: bytes(31)}, {1: bytes(32), 2: b"\xff" * 32}, {1: bytes(32), 0: bytes(32)}],
)
def test_what_are_no_shares_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(shamir.BadShares):
        shamir.combine(shares, 2)


@pytest.mark.parametrize(("threshold", "n_shares"), [(0, 3), (4, 3), (2, 5000)])
def test_thresholds_that_cannot_be_are_refused(threshold: int, n_shares: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        shamir.split(SECRET, threshold, n_shares)


@pytest.mark.parametrize("secret", [bytes(32), bytes(31), b"\xff" * 32, group.ORDER.to_bytes(32, "little")])
def test_what_is_no_secret_is_not_split(secret: bytes) -> None:
    with pytest.raises(ValueError, match="a secret is a number"):
        shamir.split(secret, 2, 3)


@pytest.mark.parametrize("points", [(bytes(32), bytes(32)), (b"\x01" + bytes(31),) * 2, (b"\xff" * 32,) * 2])
def test_nothing_fits_what_are_no_points(points: tuple[bytes, ...]) -> None:
    assert not any(map(group.is_point, points))
    assert not shamir.fits(group.secret_of(1), 1, points)


def test_points_of_low_order_are_none() -> None:
    """All eight, in the order of their place on the curve: only the base's own group counts."""
    low = [b"\x01" + bytes(31), bytes(32), b"\xec" + b"\xff" * 30 + b"\x7f", bytes(31) + b"\x80"]
    assert not any(map(group.is_point, low))
    assert group.is_point(group.public(group.secret_of(1)))
    assert group.public(group.secret_of(1)).hex() == "58" + "66" * 31  # RFC 8032's base


@given(st.integers(1, group.ORDER - 1), st.integers(1, group.ORDER - 1), st.binary(max_size=8))
def test_a_proof_holds_for_its_key_points_and_purpose_alone(number: int, other: int, about: bytes) -> None:
    secret, point = group.secret_of(number), group.public(group.secret_of(other))
    key, image = group.public(secret), group.times(secret, point)
    proof = group.prove(secret, about, point)
    assert group.is_proved(key, proof, about, (point, image))
    assert group.is_proved(key, group.prove(secret, about), about)
    wrong = group.public(group.new_secret())
    assert not group.is_proved(key, proof, about)
    assert not group.is_proved(key, proof, about + b"x", (point, image))
    assert not group.is_proved(wrong, proof, about, (point, image))
    assert not group.is_proved(key, proof, about, (wrong, image))
    assert not group.is_proved(key, proof, about, (point, wrong))
    for at in (0, 31, 32, 62):
        changed = bytearray(proof)
        changed[at] ^= 1
        assert not group.is_proved(key, bytes(changed), about, (point, image))


@pytest.mark.parametrize("image", [bytes(32), b"\xff" * 32, b"", bytes(33)])
def test_a_proof_of_what_is_no_point_is_none(image: bytes) -> None:
    secret = group.new_secret()
    key = group.public(secret)
    proof = group.prove(secret, b"x", key)
    assert not group.is_proved(key, proof, b"x", (key, image)) and not group.is_proved(image, proof, b"x", (key, key))
    assert not group.is_proved(key, proof[:-1], b"x", (key, key))


@pytest.mark.parametrize("n_clients", [1, 2, 10, 1000])
def test_a_sum_over_all_clients_never_wraps(n_clients: int) -> None:
    grid = Grid(1.0, n_clients)
    levels = quantise(np.full(5, 9.0, np.float32), 1.0, grid)  # cut to the highest level
    assert int(levels[0]) == grid.n_levels - 1
    assert n_clients * (grid.n_levels - 1) < 1 << 32


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5),
    st.integers(1, 100),
    st.floats(0.01, 1.0),
)
def test_a_value_comes_back_to_within_half_a_level(values: list[float], n_clients: int, weight: float) -> None:
    grid = Grid(1.0, n_clients)
    update = np.array(values, np.float32)
    mean, found = mean_of_sum(quantise(update, weight, grid), 1, grid)
    assert found == pytest.approx(weight, abs=grid.step)
    np.testing.assert_allclose(mean, update, atol=2 * grid.step / weight + 1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, math.nan])
def test_a_weight_outside_of_its_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="a weight is above 0"):
        quantise(np.zeros(1, np.float32), weight, Grid(1.0, 2))


def test_a_mask_and_its_opposite_cancel_whatever_the_length() -> None:
    for length in (1, 15, 16, 17, masks.BLOCK, masks.BLOCK + 1):
        words = np.arange(length, dtype=np.uint32)
        masks.apply(words, SECRET, 1)
        masks.apply(words, SECRET, -1)
        np.testing.assert_array_equal(words, np.arange(length, dtype=np.uint32))


def test_the_stream_of_a_mask_is_chacha20s() -> None:
    """The keystream of RFC 8439's first test vector: key and nonce zero, counter 0."""
    words = np.zeros(16, np.uint32)
    masks.apply(words, bytes(32), 1)
    assert (
        words.astype("<u4")
        .tobytes()
        .hex()
        .startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    )


def test_a_stream_does_not_repeat_from_block_to_block() -> None:
    words = np.zeros(2 * masks.BLOCK, np.uint32)
    masks.apply(words, SECRET, 1)
    assert not np.array_equal(words[: masks.BLOCK], words[masks.BLOCK :])


def test_two_clients_agree_and_a_third_does_not() -> None:
    secrets = [bytes([number]) * 32 for number in range(1, 4)]
    publics = [group.public(secret) for secret in secrets]
    assert masks.agree(secrets[0], publics[1], b"x") == masks.agree(secrets[1], publics[0], b"x")
    assert masks.agree(secrets[0], publics[1], b"x") != masks.agree(secrets[0], publics[1], b"y")
    found = {masks.agree(secrets[i], publics[j], b"x") for i, j in itertools.combinations(range(3), 2)}
    assert len(found) == 3


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_keys_of_low_order_are_refused(public: bytes) -> None:
    with pytest.raises(masks.BadKey):
        masks.agree(SECRET, public, b"x")
