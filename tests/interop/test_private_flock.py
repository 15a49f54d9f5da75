"""A private flock with a Kubo node in it: the same key file, the same cipher."""

from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange
from protocols.errors import DialFailed
from protocols.fetch.dag import fetch_dag
from protocols.net_libp2p import dialling
from storage.cid import Cid
from storage.unixfs.exporter import export
from storage.unixfs.importer import add_path
from storage.unixfs.profiles import PROFILES

Stranger = Any  # the class stands in conftest.py, which tests cannot import


async def test_files_pass_both_ways_inside_a_private_flock(
    private_kubo: Stranger, member: Exchange, tmp_path: Path
) -> None:
    (tmp_path / "theirs").write_bytes(bytes(range(256)) * 20_000)
    root = Cid.parse(await private_kubo.ask(do="add", path=str(tmp_path / "theirs")))
    await fetch_dag(member, root, providers=[private_kubo.info])
    export(member.store, root, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "theirs").read_bytes()
    (tmp_path / "ours").write_bytes(bytes(range(255)) * 20_000)
    ours = add_path(member.store, tmp_path / "ours", next(iter(PROFILES.values())))
    assert await private_kubo.ask(do="get", cid=str(ours), path=str(tmp_path / "came")) == 0
    assert (tmp_path / "came").read_bytes() == (tmp_path / "ours").read_bytes()


async def test_kubo_turns_a_node_without_the_key_away(
    private_kubo: Stranger, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT_S", 2.0)
    with trio.fail_after(30), pytest.raises(DialFailed):
        await exchange.network.connect(private_kubo.info)
