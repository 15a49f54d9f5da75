"""Whole daemons, started by `covey up` and driven by the command line, and strangers: files pass by CID."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from simulations.world import write_adapter

Node = Stranger = Any  # the classes stand in conftest.py files, which tests cannot import
FIND_TIMEOUT_S = 60


def report(what: str, folder: Path, seconds: float) -> None:
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*"))
    print(f"\n  {what:<40} {n_bytes / 2**20 / seconds:7.1f} MiB/s")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def in_thread(call: Callable[..., Any], *args: object, **options: object) -> Any:
    return await trio.to_thread.run_sync(partial(call, *args, **options))


async def public(node: Node, path: Path) -> str:
    return str((await in_thread(node.ask, "add", str(path), "--visibility", "public"))["cid"])


@pytest.fixture
async def start(new_node: Callable[[str], Node]) -> Callable[[str], Any]:
    """Start a daemon by name."""

    async def up(name: str) -> Node:
        return await in_thread(lambda: new_node(name).up())

    return up


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of 16 MiB, as training leaves it."""
    noise = random.Random(1)
    return write_adapter(tmp_path / "adapter", width=4096, layers=16, rank=32, noise=noise)


async def test_a_stranger_fetches_an_adapter_from_the_daemon(
    stranger: Stranger, start: Callable[[str], Any], adapter: Path, tmp_path: Path
) -> None:
    ada = await start("ada")
    folder, file = await public(ada, adapter), await public(ada, adapter / "adapter_config.json")
    await stranger.ask(do="connect", address=await in_thread(lambda: ada.address))
    began_s = trio.current_time()
    await stranger.ask(do="get", cid=folder, path=str(tmp_path / "got"))
    report(f"{stranger.name} <- covey up, an adapter", adapter, trio.current_time() - began_s)
    await stranger.ask(do="get", cid=file, path=str(tmp_path / "got.json"))
    assert contents(tmp_path / "got") == contents(adapter)
    assert (tmp_path / "got.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()


async def test_covey_get_fetches_a_file_and_a_folder_from_a_stranger(
    stranger: Stranger, start: Callable[[str], Any], adapter: Path, tmp_path: Path
) -> None:
    (adapter / "more" / "é").mkdir(parents=True)
    (adapter / "more" / "é" / "note.md").write_text("a folder in a folder")
    file, folder = [await stranger.ask(do="add", path=str(path)) for path in (adapter / "more/é/note.md", adapter)]
    bob = await start("bob")
    address = f"{stranger.info.addresses[0]}/p2p/{stranger.info.peer}"
    for cid, name in ((file, "note"), (folder, "folder")):
        out = str(tmp_path / name)
        began_s = trio.current_time()
        await in_thread(bob.ok, "get", cid, "--provider", address, "--out", out)
    report(f"covey get <- {stranger.name}, an adapter", adapter, trio.current_time() - began_s)
    assert (tmp_path / "note").read_text() == "a folder in a folder"
    assert contents(tmp_path / "folder") == contents(adapter)


async def test_helia_and_the_daemon_find_each_other_by_a_third(
    helia: Stranger, start: Callable[[str], Any], adapter: Path, tmp_path: Path
) -> None:
    """Neither is connected to the other before it asks: both know a daemon that has nothing, and serves the DHT."""
    ada, hub = await start("ada"), await start("hub")
    address = await in_thread(lambda: hub.address)
    await helia.ask(do="connect", address=address)
    await in_thread(ada.ok, "peer", "add", address)
    ours = await public(ada, adapter / "adapter_config.json")
    theirs = await helia.ask(do="add", path=str(adapter / "adapter_model.safetensors"))
    peer = await in_thread(lambda: ada.peer)
    with trio.fail_after(FIND_TIMEOUT_S):
        while peer not in await helia.ask(do="find", cid=ours):
            await trio.sleep(1)
    await helia.ask(do="get", cid=ours, path=str(tmp_path / "ours"))
    assert (tmp_path / "ours").read_bytes() == (adapter / "adapter_config.json").read_bytes()

    bob = await start("bob")
    await in_thread(bob.ok, "peer", "add", address)
    await helia.ask(do="provide", cid=theirs)
    await in_thread(bob.ok, "get", theirs, "--out", str(tmp_path / "theirs"), "--timeout-s", str(FIND_TIMEOUT_S))
    assert (tmp_path / "theirs").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
