"""Files pass between Covey and its strangers, both ways, by CID alone."""

import random
from pathlib import Path
from typing import Any

import pytest
import trio

from protocols.bitswap.shell import Exchange
from protocols.fetch.dag import fetch_dag
from protocols.net import PeerInfo
from storage.cid import Cid
from storage.unixfs.exporter import export
from storage.unixfs.importer import add_path
from storage.unixfs.profiles import PROFILES, Profile

Stranger = Any  # the class stands in conftest.py, which tests cannot import
N_BYTES = 20_000_000
BIG_BYTES = 100_000_000
FIND_TIMEOUT_S = 30


def report(what: str, n_bytes: int, seconds: float) -> None:
    print(f"\n  {what:<40} {n_bytes / 2**20 / seconds:7.1f} MiB/s")


def fill(folder: Path, n_bytes: int = N_BYTES) -> Path:
    """A folder with one large file, an empty one, and a folder with a hundred small ones."""
    rng = random.Random(n_bytes)
    (folder / "small files").mkdir(parents=True)
    (folder / "large.bin").write_bytes(rng.randbytes(n_bytes))
    (folder / "empty").touch()
    for number in range(100):
        (folder / "small files" / f"é {number}.txt").write_bytes(rng.randbytes(number))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_a_stranger_fetches_a_folder_from_covey(
    stranger: Stranger, exchange: Exchange, tmp_path: Path, profile: Profile
) -> None:
    source = fill(tmp_path / "source")
    root = add_path(exchange.store, source, profile)
    await stranger.ask(do="connect", address=exchange.network.addresses()[0])
    begin_s = trio.current_time()
    assert await stranger.ask(do="get", cid=str(root), path=str(tmp_path / "got")) == 0
    report(f"{stranger.name} <- Covey, {profile.name}", N_BYTES, trio.current_time() - begin_s)
    assert contents(tmp_path / "got") == contents(source)


async def test_a_stranger_fetches_100_mb_from_covey(stranger: Stranger, exchange: Exchange, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", BIG_BYTES) / "large.bin"
    root = add_path(exchange.store, source)
    await stranger.ask(do="connect", address=exchange.network.addresses()[0])
    begin_s = trio.current_time()
    assert await stranger.ask(do="get", cid=str(root), path=str(tmp_path / "got")) == 0
    report(f"{stranger.name} <- Covey, 100 MB", BIG_BYTES, trio.current_time() - begin_s)
    assert (tmp_path / "got").read_bytes() == source.read_bytes()


async def test_covey_fetches_100_mb_from_a_stranger(stranger: Stranger, exchange: Exchange, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", BIG_BYTES) / "large.bin"
    root = Cid.parse(await stranger.ask(do="add", path=str(source)))
    begin_s = trio.current_time()
    done = await fetch_dag(exchange, root, providers=[stranger.info])
    report(f"Covey <- {stranger.name}, 100 MB", BIG_BYTES, trio.current_time() - begin_s)
    export(exchange.store, root, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == source.read_bytes()
    assert set(done.bytes_from) == {stranger.info.peer}
    assert exchange.wants.n_duplicates == 0


async def test_covey_fetches_from_covey(exchange: Exchange, other_exchange: Exchange, tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    root = add_path(other_exchange.store, source)
    provider = PeerInfo.parse(other_exchange.network.addresses()[0])
    begin_s = trio.current_time()
    await fetch_dag(exchange, root, providers=[provider])
    report("Covey <- Covey, both in this process", N_BYTES, trio.current_time() - begin_s)
    export(exchange.store, root, tmp_path / "got")
    assert contents(tmp_path / "got") == contents(source)


async def test_helia_finds_covey_in_the_dht_and_fetches(helia: Stranger, exchange: Exchange, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(300_000))
    root = add_path(exchange.store, source)
    await exchange.network.connect(helia.info)
    await exchange.network.provide(root)
    assert str(exchange.network.peer_id) in await helia.ask(do="find", cid=str(root))
    await helia.ask(do="get", cid=str(root), path=str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == source.read_bytes()


async def test_covey_finds_helia_in_the_dht_and_fetches(helia: Stranger, exchange: Exchange, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(2).randbytes(300_000))
    root = Cid.parse(await helia.ask(do="add", path=str(source)))
    await exchange.network.connect(helia.info)
    with trio.fail_after(FIND_TIMEOUT_S):  # Helia routes by us only some time after it has identified us
        found: list[PeerInfo] = []
        while not found:
            await helia.ask(do="provide", cid=str(root))
            found = await exchange.network.find_providers(root, 5)
    assert [info.peer for info in found] == [helia.info.peer]
    await fetch_dag(exchange, root, find_more=lambda: exchange.network.find_providers(root, 5))
    export(exchange.store, root, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("stranger", ["kubo"], indirect=True)
async def test_kubo_and_covey_find_each_other_by_a_third_and_fetch(
    stranger: Stranger, exchange: Exchange, other_exchange: Exchange, tmp_path: Path
) -> None:
    """Both know a node that has nothing, and serves the DHT; what lookups connect is hung up before the fetch."""
    hub, node = exchange.network, other_exchange.network
    (tmp_path / "ours").write_bytes(random.Random(3).randbytes(300_000))
    (tmp_path / "theirs").write_bytes(random.Random(4).randbytes(300_000))
    ours = add_path(other_exchange.store, tmp_path / "ours")
    await stranger.ask(do="connect", address=hub.addresses()[0])
    await node.connect(PeerInfo.parse(hub.addresses()[0]))
    theirs = Cid.parse(await stranger.ask(do="add", path=str(tmp_path / "theirs")))  # Kubo provides what it adds
    with trio.fail_after(FIND_TIMEOUT_S):
        while not await node.find_providers(theirs, 5):
            await trio.sleep(0.5)
    await node.disconnect(stranger.info.peer)
    await fetch_dag(other_exchange, theirs, find_more=lambda: node.find_providers(theirs, 5))
    export(other_exchange.store, theirs, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "theirs").read_bytes()
    await node.provide(ours)
    await node.disconnect(stranger.info.peer)
    assert await stranger.ask(do="get", cid=str(ours), path=str(tmp_path / "came")) == 0
    assert (tmp_path / "came").read_bytes() == (tmp_path / "ours").read_bytes()
