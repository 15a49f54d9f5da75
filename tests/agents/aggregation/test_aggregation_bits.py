"""One closed set of updates has one result: whatever the order of arrival, the threads, the kernels."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.aggregation.registry import BEFORE, RULES, SERVER
from agents.aggregation.updates import Update
from tests.agents.aggregation.examples import N_PARAMS, RECIPES, digest, examples
from tests.agents.aggregation.examples import RULES as SETTINGS

ORDERS = 200
NO_SIMD = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
VECTORS = Path(__file__).parents[2] / "vectors" / "aggregation.json"


def test_every_rule_that_there_is_has_an_example() -> None:
    assert set(RULES) == set(SETTINGS)
    assert {type(step) for recipe in RECIPES.values() for step in recipe.before} == set(BEFORE.values())
    assert {type(recipe.server) for recipe in RECIPES.values() if recipe.server} >= set(SERVER.values())


@pytest.mark.parametrize("name", RECIPES)
def test_no_order_of_arrival_and_no_number_of_threads_changes_a_bit(name: str) -> None:
    updates = examples(N_PARAMS)
    expected = digest(updates, RECIPES[name])
    chance = random.Random(name)
    for turn in range(ORDERS):
        chance.shuffle(updates)
        assert digest(updates, RECIPES[name], n_threads=1 + turn % 2) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_results_are_those_of_every_other_machine(name: str) -> None:
    assert digest(examples(N_PARAMS), RECIPES[name]) == json.loads(VECTORS.read_text())[name]


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_CORETYPE": "Haswell"},
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_NUM_THREADS": "2"},
        {"NPY_DISABLE_CPU_FEATURES": NO_SIMD},
        {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"},
    ],
    ids=lambda environment: " ".join(environment.values())[:20],
)
def test_other_kernels_give_the_same_bits(environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.vectors.make_aggregation", "--print"],
        env=os.environ | environment, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == json.loads(VECTORS.read_text())


def test_the_sign_of_a_zero_decides_nothing() -> None:
    def with_zero(zero: float) -> list[Update]:
        return [update._replace(vector=np.full(5, zero, np.float32)) for update in examples(5)]

    for name, recipe in RECIPES.items():
        if name not in ("fltrust", "flame"):  # no direction, no trust; and noise is never zero
            assert digest(with_zero(-0.0), recipe) == digest(with_zero(0.0), recipe), name
