"""Scenarios of networks with few nodes: each ends as expected, draws its picture, and says the same again."""

from pathlib import Path

import pytest

from simulations.__main__ import main

SMALL = {
    "net_gossip": ["--nodes", "40", "--messages", "5"],
    "net_flash_crowd": ["--nodes", "8", "--bytes", "3000000", "--hidden", "0.2"],
    "net_partition": ["--nodes", "24", "--members", "6"],
    "net_lookup": ["--nodes", "60", "--cids", "15"],
    "net_eclipse": ["--nodes", "24", "--sybils", "16", "--subnets", "2"],
}


def run(name: str, png: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([name, *SMALL[name], "--seed", "2", "--png", str(png)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_ends_as_expected_and_is_drawn(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(name, tmp_path / "picture.png", capsys)
    assert f"{name}: as expected\n" in printed
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["net_gossip", "net_flash_crowd"])
def test_the_same_seed_gives_the_same_figures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, tmp_path / "a", capsys) == run(name, tmp_path / "b", capsys)
