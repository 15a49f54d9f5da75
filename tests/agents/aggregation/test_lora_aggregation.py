"""What comes of clients' adapters is what each way's paper says, and exact where its docstring says so."""

import numpy as np
import pytest

from agents.aggregation.fixed import matmul, qr, svd, total
from agents.aggregation.lora.adapters import Adapter, Combined, Pair, Sent
from agents.aggregation.registry import LORA, lora_of
from agents.aggregation.updates import CannotAggregate
from tests.agents.aggregation.adapters import N_CLIENTS, N_IN, N_OUT, RANK, Matrix, matrix, pair, sent

EXACT = 1e-6


def mean_product(clients: list[Sent], name: str) -> Matrix:
    return np.asarray(
        sum(one.part * one.adapter[name].scale * (one.adapter[name].b @ one.adapter[name].a) for one in clients)
    )


def error(clients: list[Sent], combined: Combined, name: str) -> float:
    """How far the next adapter, with what went into the base, is from the mean of the products; relative."""
    exact = mean_product(clients, name)
    found = combined.adapter[name].product()
    if name in combined.into_base:
        found = found + combined.into_base[name].product()
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def combine(name: str, clients: list[Sent], number: int = 1) -> Combined:
    return lora_of({"lora": name}).combine(clients, number)


EXACT_CASES = {
    "ffa": sent(a=matrix("everybody's a", RANK, N_IN)),
    "rolora": sent(a=matrix("everybody's a", RANK, N_IN)),
    "flora": sent((2, 4, 8)),
    "fedex": sent(),
}


@pytest.mark.parametrize("name", EXACT_CASES)
def test_an_exact_way_gives_the_mean_of_the_products(name: str) -> None:
    clients = EXACT_CASES[name]
    combined = combine(name, clients)
    assert all(error(clients, combined, module) <= EXACT for module in ("q_proj", "v_proj"))


def test_averaging_halves_is_not_exact_and_its_residual_is_what_lacks() -> None:
    clients = sent()
    assert error(clients, combine("fedit", clients), "q_proj") > 0.1


def test_in_even_rounds_the_other_half_is_averaged() -> None:
    clients = sent(b=matrix("everybody's b", N_OUT, RANK))
    assert error(clients, combine("rolora", clients, 2), "q_proj") <= EXACT
    with pytest.raises(CannotAggregate, match="A was trained in a round that is the other half's"):
        combine("rolora", clients, 1)


def test_frozen_means_frozen() -> None:
    with pytest.raises(CannotAggregate, match="q_proj: A was trained"):
        combine("ffa", sent())


def test_stacks_go_into_the_base_so_ranks_do_not_grow() -> None:
    combined = combine("flora", sent())
    assert combined.into_base["q_proj"].rank == N_CLIENTS * RANK
    assert combined.adapter["q_proj"].rank == RANK and not combined.adapter["q_proj"].product().any()


def test_flexlora_is_the_best_of_its_rank() -> None:
    clients = sent((2, 4, 3))
    combined = combine("flexlora", clients)
    u, s, vt = np.linalg.svd(mean_product(clients, "q_proj"))
    best = u[:, :4] @ np.diag(s[:4]) @ vt[:4]
    np.testing.assert_allclose(combined.adapter["q_proj"].product(), best, atol=1e-9)
    assert combined.adapter["q_proj"].scale == clients[1].adapter["q_proj"].scale


def test_flexlora_is_exact_where_the_rank_suffices() -> None:
    clients = sent((2, 2, 8))
    for one in clients:
        assert isinstance(one.adapter, dict)
    low = [Sent({name: pair("same", 2) for name in one.adapter}, one.part) for one in clients]
    assert error(low, combine("flexlora", low), "q_proj") <= EXACT


def test_hetlora_pads_and_weighs_by_norm() -> None:
    clients = sent((2, 4))
    combined = combine("hetlora", clients).adapter["q_proj"]
    norms = [np.linalg.norm(one.adapter["q_proj"].product()) for one in clients]
    parts = [value / sum(norms) for value in norms]
    a, b = np.zeros((4, N_IN)), np.zeros((N_OUT, 4))
    for one, part in zip(clients, parts, strict=True):
        p = one.adapter["q_proj"]
        a[: p.rank] += p.a * part
        b[:, : p.rank] += p.b * p.scale * part
    np.testing.assert_allclose(combined.product(), b @ a, atol=1e-12)


@pytest.mark.parametrize("name", ["fedit", "ffa", "fedex", "rolora"])
def test_ranks_that_differ_are_refused_where_halves_are_averaged(name: str) -> None:
    with pytest.raises(CannotAggregate, match="has ranks \\[2, 4\\]"):
        combine(name, sent((2, 4)))


@pytest.mark.parametrize("name", sorted(LORA))
def test_other_modules_and_transposed_halves_are_refused(name: str) -> None:
    other: Adapter = {"k_proj": pair("k"), "v_proj": pair("v")}
    with pytest.raises(CannotAggregate, match="different modules"):
        combine(name, [*sent(), Sent(other, 0.1)])
    turned = {key: Pair(p.b.T.copy(), p.a.T.copy(), p.scale) for key, p in sent()[0].adapter.items()}
    with pytest.raises(CannotAggregate, match="do not fit"):
        combine(name, [*sent(), Sent(turned, 0.1)])
    with pytest.raises(CannotAggregate, match="no adapter"):
        combine(name, [])


# The fixed-order algebra


@pytest.mark.parametrize("n", range(12))
def test_a_sum_by_halving_is_a_sum(n: int) -> None:
    values = matrix("sum", max(n, 1), 3)[:n]
    np.testing.assert_allclose(total(values), values.sum(0), atol=1e-12)


def test_a_product_is_a_product() -> None:
    x, y = matrix("x", 7, 5), matrix("y", 5, 9)
    np.testing.assert_allclose(matmul(x, y), x @ y, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_columns_become_orthonormal_and_give_the_matrix_back(k: int) -> None:
    x = matrix("qr", 20, k)
    q, r = qr(x)
    np.testing.assert_allclose(q @ r, x, atol=1e-12)
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=1e-12)
    assert np.array_equal(r, np.triu(r))


def test_a_column_that_depends_on_others_is_left_out() -> None:
    x = matrix("qr", 20, 3)
    x[:, 2] = 2 * x[:, 0] - x[:, 1]
    q, r = qr(x)
    np.testing.assert_allclose(q @ r, x, atol=1e-12)
    assert not q[:, 2].any()


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (9, 4)])
def test_singular_values_are_those_of_a_library(shape: tuple[int, int]) -> None:
    x = matrix("svd", *shape)
    u, s, v = svd(x)
    np.testing.assert_allclose(s, np.linalg.svd(x, compute_uv=False), atol=1e-12)
    np.testing.assert_allclose(u @ np.diag(s) @ v.T, x, atol=1e-12)
    np.testing.assert_allclose(u.T @ u, np.eye(shape[1]), atol=1e-12)


def test_a_matrix_of_zeros_has_zeros_for_singular_values() -> None:
    _, s, v = svd(np.zeros((4, 3)))
    assert not s.any() and np.array_equal(v, np.eye(3))
