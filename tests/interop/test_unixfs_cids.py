"""The CIDs that Covey, Kubo and Helia's importer give to the same files and folders are the same."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.unixfs import Keep, cid_of_path, profile_of

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "make_unixfs.py"))
N_GENERATED = 40
SEED = 2026

Ask = Callable[[str, Path], str]
"""How, what: the CID that the stranger for these settings gives."""


@pytest.fixture(scope="module")
def ask(kubo_command: list[str], helia_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    node = helia_command[0]
    modules = Path(node).parents[2]
    strangers = MAKE["Strangers"](kubo_command, node, str(modules), tmp_path_factory.mktemp("strangers"))

    def cid_by_stranger(how: str, path: Path) -> str:
        if how == MAKE["BY_KUBO"]:
            return str(strangers.by_kubo(path))
        return str(strangers.by_helia(path, MAKE["SETTINGS"][how]))

    yield cid_by_stranger
    strangers.close()


def ours(how: str, path: Path) -> str:
    options = dict(MAKE["SETTINGS"][how])
    is_kept = options.pop("keep", False)
    return str(cid_of_path(path, profile_of(options.pop("profile")).but(**options), keep=Keep(is_kept, is_kept)))


def compare(ask: Ask, recipe: dict[str, Any], settings: tuple[str, ...], path: Path) -> None:
    MAKE["materialise"](recipe, path)
    for how in settings:
        assert (how, ours(how, path)) == (how, ask(how, path))


@pytest.mark.parametrize("case", MAKE["cases"]())
async def test_recorded_cases_have_the_cid_of_strangers(ask: Ask, case: str, tmp_path: Path) -> None:
    await trio.to_thread.run_sync(compare, ask, *MAKE["cases"]()[case], tmp_path / "content")


@pytest.mark.parametrize("number", range(N_GENERATED))
async def test_generated_trees_have_the_cid_of_strangers(ask: Ask, number: int, tmp_path: Path) -> None:
    recipe = MAKE["generated"](SEED + number)
    await trio.to_thread.run_sync(compare, ask, recipe, MAKE["PROFILES"], tmp_path / "content")
